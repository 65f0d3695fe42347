package vm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// modules returns the files of the named modules and of all that they depend on,
// each after those that it needs. Names that are part of the kernel itself are
// passed over.
func (k Kernel) modules(names []string) ([]string, error) {
	r := resolver{kernel: k, files: map[string]string{}, builtin: map[string]bool{}, done: map[string]bool{}}
	if err := r.index(); err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := r.add(name); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

// resolver walks the dependencies of modules. Keys of its maps are normal names.
type resolver struct {
	kernel  Kernel
	files   map[string]string
	builtin map[string]bool
	done    map[string]bool
	order   []string
}

// index finds every module's file, and what is built in.
func (r *resolver) index() error {
	err := filepath.WalkDir(r.kernel.Modules, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.Contains(entry.Name(), ".ko") {
			r.files[normal(entry.Name())] = path
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("kernel modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(r.kernel.Modules, "modules.builtin"))
	if err != nil {
		return fmt.Errorf("kernel modules: %w", err)
	}
	for line := range strings.Lines(string(builtin)) {
		r.builtin[normal(filepath.Base(strings.TrimSpace(line)))] = true
	}
	return nil
}

// normal is a module's name as the kernel has it: no suffix, no dashes.
func normal(file string) string {
	name, _, _ := strings.Cut(file, ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func (r *resolver) add(name string) error {
	name = normal(name)
	if r.done[name] || r.builtin[name] {
		return nil
	}
	r.done[name] = true
	file, ok := r.files[name]
	if !ok {
		return fmt.Errorf("the kernel in %s has no module %s", r.kernel.Modules, name)
	}
	content, err := readModule(file)
	if err != nil {
		return err
	}
	needed, err := needs(content)
	if err != nil {
		return fmt.Errorf("module %s: %w", file, err)
	}
	for _, n := range needed {
		if err := r.add(n); err != nil {
			return err
		}
	}
	r.order = append(r.order, file)
	return nil
}

// readModule returns a module as the kernel takes it, unpacked.
func readModule(file string) ([]byte, error) {
	tool := map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}[filepath.Ext(file)]
	if tool == "" {
		return os.ReadFile(file)
	}
	out, err := exec.Command(tool, "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("unpacking module %s: %w", file, err)
	}
	return out, nil
}

// needs reads the names of the modules that one needs, from the section that
// modinfo(8) shows: depends, and what a softdep wants first.
func needs(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, entry := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			out = append(out, strings.Split(list, ",")...)
		}
	}
	slices.Sort(out)
	return out, nil
}
