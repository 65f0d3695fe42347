package fleet

import (
	"context"
	"log/slog"
	"maps"
	"strings"
	"sync"
)

// Whoever is in the cluster may send something to a replica's port. Without the key it
// is refused, and counted. What somebody has heard and sends again is the true message
// of a sibling, cannot be told from it, and is not counted; it changes nothing, either:
// a table that has seen a session once stays the same ([Table]), and memberlist's own
// messages carry the number of the incarnation that they are of.
//
// memberlist has no other way to say that it refused something than a line in its log.
// Lines about messages that came in end with from=address. Of a TCP connection that
// ends before its message does, it says nothing.

// logWriter takes memberlist's lines.
type logWriter struct{ *Fleet }

// Write implements [io.Writer].
func (w logWriter) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	severity, rest, found := strings.Cut(strings.TrimPrefix(text, "["), "] ")
	if found {
		text = strings.TrimPrefix(rest, "memberlist: ")
	} else {
		severity = ""
	}
	reason := refusalOf(severity, text)
	w.refusedMessages.count(reason)
	level := slog.LevelDebug
	if severity == "WARN" && reason == "" {
		level = slog.LevelInfo
	}
	w.options.Log.Log(context.Background(), level, "memberlist", "severity", severity, "text", text)
	return len(line), nil
}

// refusalOf is the reason for which a line says that a message was refused; "" where it
// says something else.
func refusalOf(severity, text string) string {
	if severity == "WARN" && strings.Contains(text, "invalid checksum") {
		return refusedMalformed // the one that does not say from whom
	}
	if severity != "ERR" && severity != "WARN" || !strings.Contains(text, "from=") {
		return ""
	}
	// It is ours that could not be sent, or was refused by the other side; or the
	// message was good, and too much, or for somebody else.
	for _, other := range []string{
		"Failed to send", "Failed to forward", "Failed to push local state", "Failed to encode", "remote error",
		"Too many pending", "handler queue full", "unexpected node",
	} {
		if strings.Contains(text, other) {
			return ""
		}
	}
	if strings.Contains(text, "rypt") { // decrypt, encrypted, encryption
		return refusedEncryption
	}
	return refusedMalformed
}

// refusals counts by reason. The zero value counts nothing yet.
type refusals struct {
	mu     sync.Mutex
	counts map[string]uint64
}

// count adds one, unless there is no reason.
func (r *refusals) count(reason string) {
	if reason == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = map[string]uint64{}
	}
	r.counts[reason]++
}

// of returns a copy that is never nil.
func (r *refusals) of() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]uint64{}
	maps.Copy(out, r.counts)
	return out
}
