// Package backend keeps an eye on the External Secrets controller, for gateways
// whose keys and peers come from a backend such as Vault: the Secrets that are
// mounted stay as they are while the backend is away, and nobody would notice.
package backend

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// ExternalSecrets is what this package needs of a cluster: ExternalSecrets of one
// namespace (external-secrets.io/v1), by name.
type ExternalSecrets interface {
	// Ready reads the condition Ready of one.
	Ready(ctx context.Context, name string) (Condition, error)
}

// Condition is the condition Ready of an ExternalSecret.
type Condition struct {
	// OK says that the last refresh succeeded.
	OK bool
	// Reason and Message are the controller's words.
	Reason, Message string
}

// Options of a [Watch]; all are required.
type Options struct {
	Client ExternalSecrets
	Names  []string
	// Every is how often to look. There is nothing to hurry: a refresh is not
	// asked for by us, and mounts take up to a minute anyway. A look that takes
	// longer is given up.
	Every time.Duration
	Log   *slog.Logger
}

// Watch knows how ExternalSecrets are. Its methods may be called from any
// goroutine.
type Watch struct {
	Options
	mu    sync.Mutex
	state map[string]Condition
}

// longest is how much of a controller's message is told, in bytes.
const longest = 300

// New returns a watch that has not looked yet.
func New(o Options) *Watch { return &Watch{Options: o, state: map[string]Condition{}} }

// Run looks at once, and again until ctx is done.
func (w *Watch) Run(ctx context.Context) {
	tick := time.NewTicker(w.Every)
	defer tick.Stop()
	for {
		for _, name := range w.Names {
			w.look(ctx, name)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *Watch) look(ctx context.Context, name string) {
	// An API server that never answers must not keep the others from being looked at.
	one, cancel := context.WithTimeout(ctx, w.Every)
	now, err := w.Client.Ready(one, name)
	cancel()
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		now = Condition{Reason: "Unknown", Message: err.Error()}
	}
	now.Message = cut(now.Message)
	w.mu.Lock()
	before, known := w.state[name]
	w.state[name] = now
	w.mu.Unlock()
	switch {
	case !now.OK && (!known || before != now):
		w.Log.Warn("a Secret is not refreshed, what is mounted stays in force",
			"externalSecret", name, "reason", now.Reason, "message", now.Message)
	case now.OK && known && !before.OK:
		w.Log.Info("a Secret is refreshed again", "externalSecret", name)
	}
}

func cut(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	return text
}

// Ready says of each ExternalSecret that was looked at whether it is refreshed.
func (w *Watch) Ready() map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make(map[string]bool, len(w.state))
	for name, c := range w.state {
		out[name] = c.OK
	}
	return out
}

// Condition is all of them in one, informational: with the Secrets that are
// mounted, packets are forwarded all the same.
func (w *Watch) Condition() telemetry.Condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := telemetry.Condition{Name: "externalSecrets", OK: true, Informational: true}
	var faults []string
	for _, name := range w.Names {
		switch c, known := w.state[name]; {
		case !known:
			faults = append(faults, name+": not looked at yet")
		case !c.OK:
			faults = append(faults, strings.TrimSpace(fmt.Sprintf("%s: %s %s", name, c.Reason, c.Message)))
		}
	}
	if len(faults) == 0 {
		out.Detail = "all are refreshed from their backend"
		return out
	}
	slices.Sort(faults)
	out.OK, out.Detail = false, "what is mounted stays in force: "+strings.Join(faults, "; ")
	return out
}
