package supervisor

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRun starts a process that ends at once, and waits until it has been
// started again; its child falls to the supervisor and is reaped there or by
// the machine's pid 1.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "a.sock"), filepath.Join(dir, "b.log")
	l, err := net.Listen("unix", first)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- New(dir, slog.New(slog.NewTextHandler(io.Discard, nil))).Run(ctx, []Process{
			{Name: "b", Args: []string{"sh", "-c", "echo started; true & exit 3"}, After: []string{"unix://" + first}},
			{Name: "never", Args: []string{"sh", "-c", "echo started"}, After: []string{"unix://" + dir + "/nobody.sock"}},
		})
	}()
	for {
		text, err := os.ReadFile(second)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if strings.Count(string(text), "started\n") >= 2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want the context's error", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "never.log")); err == nil {
		t.Error("a process was started before what it comes after")
	}
}

func TestRunUnknownProgram(t *testing.T) {
	err := New(t.TempDir(), slog.New(slog.NewTextHandler(io.Discard, nil))).Run(t.Context(), []Process{{Name: "x", Args: []string{"no-such-program"}}})
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("error %v does not name the program", err)
	}
}

func TestAwait(t *testing.T) {
	ready := make(chan struct{})
	asked := make(chan struct{}, 100)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		select {
		case <-ready:
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer s.Close()
	done := make(chan error, 1)
	go func() { done <- Await(t.Context(), s.URL+"/readyz") }()
	<-asked
	<-asked // it was told no, and asked again
	select {
	case err := <-done:
		t.Fatalf("Await returned %v while the answer was no", err)
	default:
	}
	close(ready)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAwaitRefuses(t *testing.T) {
	for _, address := range []string{"", "localhost:1", "tcp:///x", "unix://", "udp://x:1", "https:///x"} {
		if err := Await(t.Context(), address); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Await(%q): %v, want a complaint about the address", address, err)
		}
	}
}
