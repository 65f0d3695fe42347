// Package cli runs the agent's verbs the way a user does: the real binary, by
// the scripts in testdata. Private keys that the verbs make are random; goldens
// hold what is not.
package cli

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

var update = flag.Bool("update", false, "write the goldens of the scripts anew")

// TestMain builds the agent and puts it on the PATH of the scripts.
func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/cli:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "vpn-gateway-cli-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.CommandContext(context.Background(), "go", "build", "-ldflags", "-X main.version=1.2.3",
		"-o", filepath.Join(dir, "vpn-agent"), "../../agent/cmd/vpn-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as in the image
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	if err := os.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return recordSecrets(env.WorkDir) },
		Condition:           condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"drop-qr": dropQR,
			"hide":    hide,
			"keypair": keypair,
			"mode":    mode,
			"serve":   serve,
			"tty":     tty,
		},
	})
}

// condition knows [mounted]: this machine has the directory that verbs take
// when they are told none.
func condition(name string) (bool, error) {
	if name != "mounted" {
		return false, fmt.Errorf("unknown condition %q", name)
	}
	_, err := os.Stat("/etc/vpn-gateway")
	return err == nil, nil
}

// recordSecrets notes the keys of a script's configuration directories, which
// no verb may ever print (those that peer new makes it must).
func recordSecrets(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		slashed := filepath.ToSlash(path)
		if !strings.Contains(slashed, "/key/") && !strings.Contains(slashed, "/psk/") {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		key := strings.TrimSpace(string(content))
		if len(key) != 44 { // one of the bad ones
			return nil
		}
		return testenv.AppendSecret(key)
	})
}
