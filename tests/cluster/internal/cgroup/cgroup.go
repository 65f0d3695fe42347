// Package cgroup makes and removes the control groups that hold the Pods of
// each node, in every hierarchy of this host: version 1, 2 or both.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/mountinfo"
)

// base is the group of all nodes, below each hierarchy's root.
const base = "vpngw"

// Path is the control group of a node, relative to a hierarchy's root.
func Path(node string) string { return base + "/" + node }

// Hierarchy is a mounted tree of control groups.
type Hierarchy struct {
	// Mount is where it is mounted.
	Mount string
	// Unified tells version 2 from version 1.
	Unified bool
	// Controllers are those of the hierarchy; a named one (name=systemd) has none.
	Controllers []string
}

// controllers are all that version 1 has as a mount option, one per hierarchy
// or several.
func controllers() []string {
	return []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc"}
}

// Hierarchies finds all hierarchies of this host.
func Hierarchies() ([]Hierarchy, error) {
	mounts, err := mountinfo.Read()
	if err != nil {
		return nil, err
	}
	found := pick(mounts)
	for i, h := range found {
		if !h.Unified {
			continue
		}
		names, err := os.ReadFile(filepath.Join(h.Mount, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		found[i].Controllers = strings.Fields(string(names))
	}
	return found, nil
}

// pick finds the hierarchies among all mounts: version 1 names its controllers
// in the file system's options, version 2 does not.
func pick(mounts []mountinfo.Mount) []Hierarchy {
	var found []Hierarchy
	for _, m := range mounts {
		h := Hierarchy{Mount: m.Point}
		switch m.Type {
		case "cgroup":
			for _, option := range m.Options {
				if slices.Contains(controllers(), option) {
					h.Controllers = append(h.Controllers, option)
				}
			}
		case "cgroup2":
			h.Unified = true
		default:
			continue
		}
		if !slices.ContainsFunc(found, func(f Hierarchy) bool { return f.Mount == h.Mount }) {
			found = append(found, h)
		}
	}
	return found
}

// Missing names the controllers that a kubelet needs and no hierarchy has.
func Missing(hierarchies []Hierarchy) []string {
	needed := []string{"cpu", "cpuset", "memory", "pids"}
	return slices.DeleteFunc(needed, func(c string) bool {
		return slices.ContainsFunc(hierarchies, func(h Hierarchy) bool { return slices.Contains(h.Controllers, c) })
	})
}

// Create makes the node's control group in every hierarchy.
func Create(hierarchies []Hierarchy, node string) error {
	for _, h := range hierarchies {
		dir := h.Mount
		for _, name := range strings.Split(Path(node), "/") {
			if h.Unified {
				if err := delegate(dir, h.Controllers); err != nil {
					return err
				}
			}
			parent := dir
			dir = filepath.Join(dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("cgroup: %w", err)
			}
			if !h.Unified && slices.Contains(h.Controllers, "cpuset") {
				if err := inherit(parent, dir); err != nil {
					return err
				}
			}
		}
		if h.Unified {
			if err := delegate(dir, h.Controllers); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegate lets the groups below one use the controllers (version 2). A group
// with processes of its own cannot, unless it is the root of all: that is the
// case in a container whose engine gave it a control group namespace.
func delegate(dir string, controllers []string) error {
	for _, c := range controllers {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("cgroup %s: cannot enable %s below it since processes live in it: move them to a group below it", dir, c)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("cgroup: enable %s: %w", c, err)
		}
	}
	return nil
}

// inherit copies a cpuset's processors and memory nodes to a group below it
// (version 1): it is born with none, and no process can enter it.
func inherit(parent, child string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(child, file), value, 0o644); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	return nil
}

// Remove removes the node's control groups, with all below them: the node's
// processes must have ended. The last node takes the group of all along.
func Remove(hierarchies []Hierarchy, node string) error {
	var failed []error
	for _, h := range hierarchies {
		if err := removeTree(filepath.Join(h.Mount, Path(node))); err != nil {
			failed = append(failed, err)
			continue
		}
		err := os.Remove(filepath.Join(h.Mount, base)) // fails while other nodes are in it
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, fmt.Errorf("cgroup: %w", err))
		}
	}
	return errors.Join(failed...)
}

// removeTree removes groups from the leaves up. What lies in them is the
// kernel's and goes along. Killed processes count for a moment longer.
func removeTree(dir string) error {
	const patience, pause = 5 * time.Second, 20 * time.Millisecond
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	deadline := time.Now().Add(patience)
	for _, d := range slices.Backward(dirs) {
		for {
			err := unix.Rmdir(d)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("cgroup: remove %s: %w", d, err)
			}
			time.Sleep(pause)
		}
	}
	return nil
}
