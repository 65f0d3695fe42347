package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestServe(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // a free port
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"serve", address}, nil) }()

	ask := func(args ...string) string {
		t.Helper()
		for {
			var out bytes.Buffer
			err := run(t.Context(), args, &out)
			if err == nil {
				return out.String()
			}
			select {
			case err := <-done:
				t.Fatalf("serve: %v", err)
			case <-time.After(10 * time.Millisecond): // it does not listen yet
			}
		}
	}
	for _, tt := range []struct {
		args []string
		last string
	}{
		{[]string{"get", "http://" + address + "/a/b"}, "/a/b"},
		{[]string{"udp", address, "hello\n"}, "hello"},
	} {
		fields := strings.Fields(ask(tt.args...))
		if len(fields) != 3 || fields[0] != host || !strings.HasPrefix(fields[1], "127.0.0.1:") || fields[2] != tt.last {
			t.Errorf("%v: %q, want %s, an address, %s", tt.args, fields, host, tt.last)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve ended: %v", err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"get"}, {"udp", "x"}, {"serve", "a", "b"}, {"other"}} {
		if err := run(t.Context(), args, nil); err == nil {
			t.Errorf("run(%q): no error", args)
		}
	}
}
