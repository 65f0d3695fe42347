package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/wgclient"
)

func TestMain(m *testing.M) {
	podrun.Main()
	os.Exit(m.Run())
}

func needLocal(t *testing.T) {
	t.Helper()
	testenv.Need(t, append([]testenv.Requirement{testenv.Root(), testenv.NetNS(), testenv.TUN(), wgclient.Tools()}, (&local{}).needs()...)...)
}

// nothingLeft fails t if a client's socket or a directory of ours is there that
// was not there when it was called first.
func nothingLeft(t *testing.T) func() {
	t.Helper()
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	return func() {
		t.Helper()
		for _, pattern := range []string{filepath.Join(temp, "*"), "/run/netns/vpngw-demo*"} {
			if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
	}
}

func TestStory(t *testing.T) {
	needLocal(t)
	check := nothingLeft(t)
	var out bytes.Buffer
	err := tell(t.Context(), story{place: &local{}, out: &screen{out: &out}, logs: testenv.Artifacts(t)})
	t.Log("\n" + out.String())
	if err != nil {
		t.Fatal(err)
	}
	check()
	for _, want := range []string{
		`(?m)^✓ stream    [1-9]\d\d+ packets sent, 0 lost, longest gap \d+ ms$`,
		`(?m)^✓   bob     is added to the peers: in force [\d.]+ m?s after the files changed$`,
		`(?m)^✓   key     alice's pre-shared key is changed in its Secret: in force [\d.]+ m?s after`,
		`(?m)^✓ service   http://10\.244\.1\.10/ through the tunnel says "hello, 10\.244\.0\.10"`,
		`(?m)^✓ agent     0 restarts$`,
		`uid 0 with the one capability NET_ADMIN, no new privileges, / read-only, /proc/sys read-only`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("the output has no line like %s", want)
		}
	}
}

// cutter is a writer that calls cut when it has seen a text.
type cutter struct {
	io.Writer
	at  string
	cut func()
}

func (c cutter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(c.at)) {
		c.cut()
	}
	return c.Writer.Write(p)
}

func TestInterruptLeavesNothing(t *testing.T) {
	needLocal(t)
	for _, at := range []string{"gateway  ", "stream  "} {
		t.Run(strings.TrimSpace(at), func(t *testing.T) {
			check := nothingLeft(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := &screen{out: cutter{Writer: io.Discard, at: at, cut: cancel}}
			err := tell(ctx, story{place: &local{}, out: out, logs: testenv.Artifacts(t)})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("tell: %v, want that it was interrupted", err)
			}
			check()
		})
	}
}

func TestRefuse(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := refuse(&local{})
	if err == nil {
		t.Fatal("not refused without tools")
	}
	for _, want := range []string{"\n  - command wg ", "\n  - command wireguard-go ", "\n  - command go", "\nOn Debian and its kin, as root: apt-get install wireguard"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the refusal does not name %q:\n%v", want, err)
		}
	}
}

func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out}
	s.title("A headline")
	failure := errors.New("why")
	for _, step := range []struct {
		label, text string
		err         error
	}{
		{"one", "first line\nsecond line", nil},
		{"  two", "", failure},
	} {
		err := s.step(step.label, "doing it", func(progress func(string)) (string, error) {
			progress("half of it")
			return step.text, step.err
		})
		if !errors.Is(err, step.err) {
			t.Errorf("step returned %v, want %v", err, step.err)
		}
	}
	want := "A headline\n\n· one       half of it\n✓ one       first line\n            second line\n·   two     half of it\n✗   two     failed\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

func TestLineWriter(t *testing.T) {
	var lines []string
	w := &lineWriter{line: func(s string) { lines = append(lines, s) }}
	for _, part := range []string{"a", "b\nc", "\n\nrest"} {
		fmt.Fprint(w, part)
	}
	if diff := cmp.Diff([]string{"ab", "c", ""}, lines); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}
