// Package debian gets a library that this machine lacks from its distribution
// without installing anything: apt downloads the package, dpkg unpacks it into
// the cache. It works on Debian and what derives from it.
package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Available tells whether this machine has apt and dpkg.
func Available() bool {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false
		}
	}
	return true
}

// Tree is a file system root with unpacked packages.
type Tree struct{ Root string }

// Unpack gets packages, with all that they depend on and that is not installed,
// and keeps them in the directory cache.
func Unpack(ctx context.Context, cache string, packages ...string) (Tree, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return Tree{}, err
	}
	hash := sha256.Sum256([]byte(strings.Join(packages, " ") + "\n" + string(release)))
	dir := filepath.Join(cache, packages[0]+"-"+hex.EncodeToString(hash[:8]))
	tree := Tree{Root: filepath.Join(dir, "root")}
	if _, err := os.Stat(tree.Root); err == nil {
		return tree, nil
	}
	archives := filepath.Join(dir, "archives")
	if err := os.MkdirAll(filepath.Join(archives, "partial"), 0o755); err != nil {
		return Tree{}, err
	}
	if err := download(ctx, dir, archives, packages); err != nil {
		return Tree{}, err
	}
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return Tree{}, err
	}
	if len(debs) == 0 {
		return Tree{}, fmt.Errorf("apt-get downloads nothing for %s: it takes them for installed", strings.Join(packages, " "))
	}
	fresh := tree.Root + ".new"
	for _, deb := range debs {
		if err := run(ctx, "dpkg-deb", "-x", deb, fresh); err != nil {
			return Tree{}, err
		}
	}
	if err := os.RemoveAll(archives); err != nil {
		return Tree{}, err
	}
	return tree, os.Rename(fresh, tree.Root)
}

// download lets apt put the packages into archives: by the lists that the
// machine has, else by fresh ones, kept in dir.
func download(ctx context.Context, dir, archives string, packages []string) error {
	options := []string{
		"-qq", "-o", "Dir::Cache::archives=" + archives,
		"-o", "Debug::NoLocking=true", "-o", "APT::Sandbox::User=root",
	}
	install := func(o []string) error {
		args := append(append([]string{}, o...), "install", "--yes", "--download-only", "--no-install-recommends")
		return run(ctx, "apt-get", append(args, packages...)...)
	}
	if install(options) == nil {
		return nil
	}
	lists := filepath.Join(dir, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(lists)
	options = append(options, "-o", "Dir::State::lists="+lists)
	if err := run(ctx, "apt-get", append(append([]string{}, options...), "update")...); err != nil {
		return err
	}
	return install(options)
}

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Libraries are the directories of libraries in the tree.
func (t Tree) Libraries() ([]string, error) {
	var found []string
	for _, pattern := range []string{"/usr/lib/*-linux-gnu*", "/lib/*-linux-gnu*"} {
		dirs, err := filepath.Glob(t.Root + pattern)
		if err != nil {
			return nil, err
		}
		found = append(found, dirs...)
	}
	return found, nil
}
