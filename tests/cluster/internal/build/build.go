// Package build makes the programs and images of the cluster from source and
// keeps what it made, by a hash of the inputs, outside of the repository.
package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/config"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/image"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/progress"
)

// Builder builds parts.
type Builder struct {
	// Source is the directory of this program's own sources.
	Source string
	// Cache is where the results are kept.
	Cache string
	// Env are variables that the C compiler's side of cgo needs, NAME=value.
	Env []string
	// Progress is told what goes on.
	Progress *progress.Printer
}

// Result is what the cluster runs.
type Result struct {
	// Programs are the files of all programs and links to them, by name.
	Programs map[string]string
	// Images are archives to import into every node.
	Images []string
}

// FindSource finds the sources of this program from a directory inside of them
// or inside of the repository.
func FindSource(from string) (string, error) {
	for dir := from; ; dir = filepath.Dir(dir) {
		for _, candidate := range []string{dir, filepath.Join(dir, "tests", "cluster")} {
			if _, err := os.Stat(filepath.Join(candidate, "parts", "kubernetes", "go.mod")); err == nil {
				return candidate, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no sources of the cluster in or above %s: call this inside of the repository", from)
		}
	}
}

// Programs are the names of the files that building the part makes.
func (p Part) Programs() []string {
	names := make([]string, 0, len(p.Packages)+len(p.Links))
	for _, pkg := range p.Packages {
		if pkg == "." {
			pkg = p.Dir
		}
		names = append(names, path.Base(pkg))
	}
	return append(names, p.Links...)
}

// Build builds those of the parts that are not in the cache, and their images.
func (b *Builder) Build(ctx context.Context, parts []Part) (Result, error) {
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		return Result{}, err
	}
	held, err := lock(filepath.Join(b.Cache, "lock"))
	if err != nil {
		return Result{}, err
	}
	defer held.Close()
	result := Result{Programs: map[string]string{}}
	for _, part := range parts {
		dir, err := b.part(ctx, part)
		if err != nil {
			return Result{}, err
		}
		for _, name := range part.Programs() {
			result.Programs[name] = filepath.Join(dir, name)
		}
	}
	for _, spec := range images(result.Programs) {
		file := spec.Program + ".image.tar" // beside the program: as old as that
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			if err := image.Write(file+".new", spec); err != nil {
				return Result{}, err
			}
			if err := os.Rename(file+".new", file); err != nil {
				return Result{}, err
			}
		}
		result.Images = append(result.Images, file)
	}
	return result, nil
}

// images are those of the programs that were built.
func images(programs map[string]string) []image.Spec {
	all := []image.Spec{
		{Ref: config.PauseImage, Program: programs["pause"], Path: "/pause"},
		{Ref: config.CoreDNSImage, Program: programs["coredns"], Path: "/coredns"},
		{Ref: config.EchoImage, Program: programs["echo"], Path: "/echo", Cmd: []string{"serve"}},
		{Ref: config.ExternalSecretsImage, Program: programs["external-secrets"], Path: "/external-secrets"},
	}
	return slices.DeleteFunc(all, func(spec image.Spec) bool { return spec.Program == "" })
}

// Missing are the names of those of the parts that are not in the cache.
func (b *Builder) Missing(ctx context.Context, parts []Part) ([]string, error) {
	var missing []string
	for _, part := range parts {
		dir, err := b.place(ctx, part)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(dir); err != nil {
			missing = append(missing, part.Name)
		}
	}
	return missing, nil
}

// place is the directory in the cache of a part with the inputs as they are.
func (b *Builder) place(ctx context.Context, p Part) (string, error) {
	version, err := goVersion(ctx, filepath.Join(b.Source, p.Dir))
	if err != nil {
		return "", err
	}
	key, err := Key(p, b.Source, version)
	if err != nil {
		return "", err
	}
	return filepath.Join(b.Cache, p.Name+"-"+key), nil
}

// part builds one part, if need be, and returns its directory in the cache.
func (b *Builder) part(ctx context.Context, p Part) (string, error) {
	dir, err := b.place(ctx, p)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	b.Progress.Say("build %s (%s), cold: %s", p.Name, strings.Join(p.Programs(), ", "), p.Cold)
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil { // an interrupted build's
		return "", err
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return "", err
	}
	watch := &watcher{}
	err = b.Progress.Step("build "+p.Name, watch.detail, func() error { return b.compile(ctx, p, fresh, watch) })
	if err != nil {
		return "", err
	}
	for _, link := range p.Links {
		if err := os.Symlink(p.Programs()[0], filepath.Join(fresh, link)); err != nil {
			return "", err
		}
	}
	return dir, os.Rename(fresh, dir)
}

// compile runs go build, all programs of the part into the directory out.
func (b *Builder) compile(ctx context.Context, p Part, out string, watch *watcher) error {
	module := filepath.Join(b.Source, p.Dir)
	args := []string{
		"build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false",
		"-tags", p.Tags, "-ldflags", strings.TrimSpace("-s -w " + p.LDFlags), "-o", out + "/",
	}
	if p.Replaced != nil {
		// Beside the result, and gone with this build: where sources lie does
		// not matter to the build (-trimpath).
		copied := out + ".src"
		defer os.RemoveAll(copied)
		modfile, err := p.Replaced.apply(ctx, module, copied)
		if err != nil {
			return err
		}
		args = append(args, "-modfile", modfile)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, p.Packages...)...)
	cmd.Dir = module
	cgo := "CGO_ENABLED=0"
	if p.CGO {
		cgo = "CGO_ENABLED=1"
	}
	cmd.Env = append(append(os.Environ(), "GOWORK=off", cgo), b.Env...)
	cmd.Stdout = watch
	cmd.Stderr = watch
	// A thread of go build that outlives an interrupted run would go on for minutes.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", module, err, watch.errors())
	}
	return nil
}

func goVersion(ctx context.Context, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION")
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go env GOVERSION in %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// lock keeps a second run from building the same at the same time.
func lock(file string) (held io.Closer, err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", file, err), f.Close())
	}
	return f, nil
}

// watcher reads what `go build -v` prints: a line for each package that it
// compiles (what is in Go's own cache is not named), for each module that it
// downloads, and errors.
type watcher struct {
	mu       sync.Mutex
	rest     []byte // of a line that is not complete
	packages int
	last     string
	tail     []string // the last lines
}

var _ io.Writer = (*watcher)(nil)

func (w *watcher) Write(text []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, text...)
	for {
		line, rest, found := bytes.Cut(w.rest, []byte("\n"))
		if !found {
			return len(text), nil
		}
		w.rest = rest
		w.line(string(line))
	}
}

func (w *watcher) line(line string) {
	const keep = 40
	w.tail = append(w.tail, line)
	w.tail = w.tail[max(0, len(w.tail)-keep):]
	w.last = strings.TrimPrefix(line, "go: ")
	if !strings.ContainsAny(line, " \t") {
		w.packages++
	}
}

// detail is the state in a few words.
func (w *watcher) detail() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%d packages compiled, %s", w.packages, w.last)
}

// errors are the last lines without the names of compiled packages.
func (w *watcher) errors() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var kept []string
	lines := bufio.NewScanner(strings.NewReader(strings.Join(append(w.tail, string(w.rest)), "\n")))
	for lines.Scan() {
		if line := lines.Text(); strings.ContainsAny(line, " \t") && !strings.HasPrefix(line, "go: downloading ") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}
