// Package tools builds the development tools that the project pins, each from a
// nested module of its own because their dependencies conflict. A built tool
// stays in the user's cache directory, keyed by what it was built from, so that
// it is built once a version and a machine.
package tools

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// EnvCache names the environment variable that overrides the cache directory.
const EnvCache = "VPN_GATEWAY_CACHE"

// Tool is a command built from the nested module ci/tools/<Name>.
type Tool struct {
	Name    string
	Package string
	// module is the path whose version in the nested go.mod is the tool's own.
	module string
	// ldflags returns the linker's -X assignments for the nested go.mod.
	ldflags func(gomod string) ([]string, error)
}

// All lists the pinned tools.
func All() []Tool {
	return []Tool{
		{
			Name: "golangci-lint", module: "github.com/golangci/golangci-lint/v2",
			Package: "github.com/golangci/golangci-lint/v2/cmd/golangci-lint",
		},
		{
			Name: "helm", module: "helm.sh/helm/v3",
			Package: "helm.sh/helm/v3/cmd/helm", ldflags: helmLDFlags,
		},
		{
			Name: "helm-docs", module: "github.com/norwoodj/helm-docs",
			Package: "github.com/norwoodj/helm-docs/cmd/helm-docs",
		},
	}
}

// Lookup returns the pinned tool of that name.
func Lookup(name string) (Tool, error) {
	var names []string
	for _, t := range All() {
		if t.Name == name {
			return t, nil
		}
		names = append(names, t.Name)
	}
	return Tool{}, fmt.Errorf("unknown tool %q; the project pins %s", name, strings.Join(names, ", "))
}

// helmLDFlags sets what Helm's own Makefile sets: without the Kubernetes version
// `helm template` and `helm lint` believe in 1.20, and a chart whose kubeVersion
// is newer is refused.
func helmLDFlags(gomod string) ([]string, error) {
	helm, err := moduleVersion(gomod, "helm.sh/helm/v3")
	if err != nil {
		return nil, err
	}
	clientGo, err := moduleVersion(gomod, "k8s.io/client-go")
	if err != nil {
		return nil, err
	}
	// client-go v0.37.2 belongs to Kubernetes 1.37.2.
	parts := strings.Split(strings.TrimPrefix(clientGo, "v"), ".")
	major, err := strconv.Atoi(parts[0])
	if err != nil || len(parts) != 3 {
		return nil, fmt.Errorf("k8s.io/client-go %s: want a version v0.MINOR.PATCH", clientGo)
	}
	flags := []string{"helm.sh/helm/v3/internal/version.version=" + helm}
	for _, pkg := range []string{"chartutil", "lint/rules"} {
		flags = append(flags,
			fmt.Sprintf("helm.sh/helm/v3/pkg/%s.k8sVersionMajor=%d", pkg, major+1),
			fmt.Sprintf("helm.sh/helm/v3/pkg/%s.k8sVersionMinor=%s", pkg, parts[1]))
	}
	return flags, nil
}

// moduleVersion returns the version that the text of a go.mod requires of module.
func moduleVersion(gomod, module string) (string, error) {
	m := regexp.MustCompile(`(?m)^(?:require)?\s+` + regexp.QuoteMeta(module) + `\s+(v\S+)`).FindStringSubmatch(gomod)
	if m == nil {
		return "", fmt.Errorf("go.mod does not require %s", module)
	}
	return m[1], nil
}

// CacheDir returns the directory for what the project builds and keeps outside
// its tree: $VPN_GATEWAY_CACHE, else vpn-gateway in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv(EnvCache); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache directory: %w; set %s", err, EnvCache)
	}
	return filepath.Join(dir, "vpn-gateway"), nil
}

// Path returns the path of the built tool. What is not in the cache yet is built
// from root, the project's directory; progress goes to log.
func (t Tool) Path(ctx context.Context, root string, log io.Writer) (string, error) {
	plan, err := t.plan(root)
	if err != nil {
		return "", fmt.Errorf("tool %s: %w", t.Name, err)
	}
	if _, err := os.Stat(plan.output); err == nil {
		return plan.output, nil
	}
	if err := plan.build(ctx, log); err != nil {
		return "", fmt.Errorf("tool %s: %w", t.Name, err)
	}
	return plan.output, nil
}

// buildPlan is how a tool is built, and where it ends up.
type buildPlan struct {
	dir, output string
	args        []string
	title       string
}

func (t Tool) plan(root string) (buildPlan, error) {
	dir := filepath.Join(root, "ci", "tools", t.Name)
	gomod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return buildPlan{}, err
	}
	gosum, err := os.ReadFile(filepath.Join(dir, "go.sum"))
	if err != nil {
		return buildPlan{}, err
	}
	version, err := moduleVersion(string(gomod), t.module)
	if err != nil {
		return buildPlan{}, err
	}
	ldflags := "-s -w -X main.version=" + version
	if t.ldflags != nil {
		flags, err := t.ldflags(string(gomod))
		if err != nil {
			return buildPlan{}, err
		}
		ldflags = "-s -w -X " + strings.Join(flags, " -X ")
	}
	args := []string{"build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", ldflags}

	key := sha256.New()
	fmt.Fprintf(key, "%s\n%s/%s\n%q\n%s\n%s", runtime.Version(), runtime.GOOS, runtime.GOARCH, args, gomod, gosum)
	cache, err := CacheDir()
	if err != nil {
		return buildPlan{}, err
	}
	return buildPlan{
		dir:    dir,
		output: filepath.Join(cache, "tools", t.Name+"-"+hex.EncodeToString(key.Sum(nil))[:16], t.Name),
		args:   append(args, "-o", "", t.Package),
		title:  t.Name + " " + version,
	}, nil
}

// build builds into place whole or not at all. Of several processes that want
// the same tool one builds and the others wait for it.
func (p buildPlan) build(ctx context.Context, log io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(p.output), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(p.output+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(p.output); err == nil {
		return nil
	}
	fmt.Fprintf(log, "building %s into %s (once, takes minutes)\n", p.title, filepath.Dir(p.output))
	partial := p.output + ".partial"
	args := append([]string{}, p.args...)
	args[len(args)-2] = partial
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = p.dir
	// A static tool needs no C compiler; the caller's flags are for its module.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build in %s: %w", p.dir, err)
	}
	return os.Rename(partial, p.output)
}
