package telemetry

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// NewLogger returns a logger that writes one JSON object a line. Secret keys
// redact themselves (package key); as a safety net, so are attributes that are
// called after a secret and bare byte strings of a key's length.
func NewLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: redact}))
}

func redact(_ []string, a slog.Attr) slog.Attr {
	switch strings.ToLower(a.Key) {
	case "privatekey", "presharedkey", "psk":
		return slog.String(a.Key, key.Redacted)
	}
	if a.Value.Kind() == slog.KindAny && isBareKey(a.Value.Any()) {
		return slog.String(a.Key, key.Redacted)
	}
	return a
}

// isBareKey catches a [32]byte, a []byte of that length, and foreign key types
// made of them: nobody knows which of those are secret.
func isBareKey(v any) bool {
	if _, public := v.(key.Public); public {
		return false
	}
	r := reflect.ValueOf(v)
	for r.Kind() == reflect.Pointer && !r.IsNil() {
		r = r.Elem()
	}
	if r.Kind() != reflect.Array && r.Kind() != reflect.Slice {
		return false
	}
	return r.Type().Elem().Kind() == reflect.Uint8 && r.Len() == key.Len
}

// Reload is what is said of one reading of changed files.
type Reload struct {
	// Err is why the files were not taken; nil where they were.
	Err error
	// Hash and Generation in force afterwards.
	Hash       string
	Generation uint64
	// Peers in force afterwards.
	Peers int
	// Changes in words: names of peers and fields, never keys (plan.Summary).
	Changes []string
	// Warnings about files that were taken.
	Warnings spec.Faults
	Took     time.Duration
	// Stages is where Took went, in order; empty where nobody measured.
	Stages []Stage
}

// LogFatal writes the one line of what ends the process.
func LogFatal(log *slog.Logger, err error) {
	log.Error("ended", "errors", lines(err))
}

// Stage is a part of a run. Its name is a key of the log line.
type Stage struct {
	Name string
	Took time.Duration
}

// LogReload writes the one line of a reload.
func LogReload(log *slog.Logger, r Reload) {
	attrs := []any{"hash", r.Hash, "generation", r.Generation, "peers", r.Peers, "durationMs", r.Took.Milliseconds()}
	if r.Err != nil {
		log.Error("reload failed, the last good configuration stays in force", append(attrs, "errors", lines(r.Err))...)
		return
	}
	attrs = append(attrs, "changes", r.Changes)
	if len(r.Stages) > 0 {
		attrs = append(attrs, "stagesMs", stages(r.Stages))
	}
	if len(r.Warnings) > 0 {
		log.Warn("configuration reloaded with warnings", append(attrs, "warnings", lines(r.Warnings))...)
		return
	}
	log.Info("configuration reloaded", attrs...)
}

// stages are milliseconds with three digits.
func stages(list []Stage) slog.Value {
	attrs := make([]slog.Attr, len(list))
	for i, s := range list {
		attrs[i] = slog.Float64(s.Name, float64(s.Took.Microseconds())/1000)
	}
	return slog.GroupValue(attrs...)
}

// faultsLogged bounds a line: a broken file may have a fault for every peer.
const faultsLogged = 100

// lines makes a list of an error with many faults in it.
func lines(err error) []string {
	var faults spec.Faults
	if !errors.As(err, &faults) {
		return []string{err.Error()}
	}
	return faults.Summary(faultsLogged)
}

// LogEvents writes one line for each thing that happened to a peer, with the
// peer's name where it is configured. A peer that was removed while connected
// has none any more.
func LogEvents(log *slog.Logger, events []state.Event, names map[key.Public]string) {
	for _, e := range events {
		log := log.With("publicKey", e.PublicKey)
		if name, configured := names[e.PublicKey]; configured {
			log = log.With("peer", name)
		}
		switch e.Kind {
		case state.PeerConnected:
			log.Info("peer connected", "endpoint", endpoint(e.To))
		case state.PeerDisconnected:
			log.Info("peer disconnected", "endpoint", endpoint(e.To))
		case state.PeerRoamed:
			log.Info("peer roamed", "from", endpoint(e.From), "endpoint", endpoint(e.To))
		}
	}
}

// endpoint is empty where none is known.
func endpoint(ap netip.AddrPort) string {
	if !ap.IsValid() {
		return ""
	}
	return ap.String()
}
