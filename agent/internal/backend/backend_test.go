package backend

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// fake is what a cluster says, in its order; the last answer is repeated.
type fake struct{ answers map[string][]answer }

type answer struct {
	Condition
	err error
}

func (f *fake) Ready(_ context.Context, name string) (Condition, error) {
	list := f.answers[name]
	if len(list) > 1 {
		f.answers[name] = list[1:]
	}
	return list[0].Condition, list[0].err
}

func TestWatch(t *testing.T) {
	ok, down := Condition{OK: true, Reason: "SecretSynced"}, Condition{Reason: "SecretSyncedError", Message: "could not get\nsecret data from provider"}
	f := &fake{answers: map[string][]answer{
		"keys":  {{Condition: ok}, {Condition: down}, {Condition: down}, {Condition: ok}},
		"peers": {{Condition: ok}, {Condition: ok}, {err: errors.New("forbidden")}, {Condition: ok}},
	}}
	var log bytes.Buffer
	w := New(Options{Client: f, Names: []string{"keys", "peers"}, Every: time.Hour, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if c := w.Condition(); c.OK || !strings.Contains(c.Detail, "keys: not looked at yet") {
		t.Errorf("before the first look: %+v", c)
	}
	steps := []struct {
		name   string
		detail string
		ready  map[string]bool
		lines  int
	}{
		{"all is well", "all are refreshed from their backend", map[string]bool{"keys": true, "peers": true}, 0},
		{"the backend is down", "what is mounted stays in force: keys: SecretSyncedError could not get secret data from provider", map[string]bool{"keys": false, "peers": true}, 1},
		{"nobody tells", "what is mounted stays in force: keys: SecretSyncedError could not get secret data from provider; peers: Unknown forbidden", map[string]bool{"keys": false, "peers": false}, 1},
		{"well again", "all are refreshed from their backend", map[string]bool{"keys": true, "peers": true}, 2},
	}
	for _, step := range steps {
		log.Reset()
		for _, name := range w.Names {
			w.look(t.Context(), name)
		}
		want := telemetry.Condition{Name: "externalSecrets", OK: !strings.Contains(step.detail, "stays"), Detail: step.detail, Informational: true}
		if diff := cmp.Diff(want, w.Condition()); diff != "" {
			t.Errorf("%s: condition (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(step.ready, w.Ready()); diff != "" {
			t.Errorf("%s: ready (-want +got):\n%s", step.name, diff)
		}
		if got := strings.Count(log.String(), "\n"); got != step.lines {
			t.Errorf("%s: %d log lines, want %d:\n%s", step.name, got, step.lines, log.String())
		}
	}
}

func TestLongMessagesAreCut(t *testing.T) {
	f := &fake{answers: map[string][]answer{"keys": {{Condition: Condition{Message: strings.Repeat("é", 1000)}}}}}
	w := New(Options{Client: f, Names: []string{"keys"}, Every: time.Hour, Log: slog.New(slog.DiscardHandler)})
	w.look(t.Context(), "keys")
	if got := len(w.Condition().Detail); got > 2*longest {
		t.Errorf("a detail of %d bytes", got)
	}
}

// silent never answers for one, and at once for all others.
type silent string

func (s silent) Ready(ctx context.Context, name string) (Condition, error) {
	if name != string(s) {
		return Condition{OK: true}, nil
	}
	<-ctx.Done()
	return Condition{}, ctx.Err()
}

func TestNoAnswer(t *testing.T) {
	w := New(Options{Client: silent("keys"), Names: []string{"keys", "peers"}, Every: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go w.Run(ctx)
	for !w.Ready()["peers"] {
		if ctx.Err() != nil {
			t.Fatal("peers is not looked at while nobody answers for keys")
		}
		time.Sleep(time.Millisecond)
	}
	if got, want := w.Condition().Detail, "what is mounted stays in force: keys: Unknown context deadline exceeded"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRunEnds(t *testing.T) {
	f := &fake{answers: map[string][]answer{"keys": {{Condition: Condition{OK: true}}}}}
	w := New(Options{Client: f, Names: []string{"keys"}, Every: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	for !w.Condition().OK {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
}
