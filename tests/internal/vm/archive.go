package vm

import (
	"bufio"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// archive writes the kernel's initial root file system: a cpio archive in the
// format newc (Documentation/driver-api/early-userspace/buffer-format.rst). It is
// not compressed, since an emulated processor unpacks slowly.
type archive struct {
	out   *bufio.Writer
	size  int64
	names map[string]bool
}

func newArchive(w io.Writer) *archive {
	return &archive{out: bufio.NewWriterSize(w, 1<<20), names: map[string]bool{}}
}

// entry is a file, directory, link or device of the archive.
type entry struct {
	mode         uint32
	content      []byte
	major, minor int // of a device
}

// entry writes one entry, unless it is there already, and before it the
// directories above.
func (a *archive) entry(name string, e entry) error {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if a.names[name] || name == "." {
		return nil
	}
	a.names[name] = true
	if parent := path.Dir(name); parent != "." {
		if err := a.directory(parent); err != nil {
			return err
		}
	}
	return a.write(name, e)
}

func (a *archive) write(name string, e entry) error {
	// magic, inode, mode, uid, gid, links, mtime, size, the file system's device, the device, name's size, checksum
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		len(a.names), e.mode, 0, 0, 1, 0, len(e.content), 0, 0, e.major, e.minor, len(name)+1, 0)
	for _, part := range [][]byte{append([]byte(header+name), 0), e.content} {
		n, err := a.out.Write(part)
		a.size += int64(n)
		if err == nil {
			err = a.pad(4)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) pad(to int64) error {
	for ; a.size%to != 0; a.size++ {
		if err := a.out.WriteByte(0); err != nil {
			return err
		}
	}
	return nil
}

// Types of entries (inode(7)).
const (
	isDirectory = 0o040000
	isRegular   = 0o100000
	isLink      = 0o120000
	isCharacter = 0o020000
)

func (a *archive) directory(name string) error {
	return a.entry(name, entry{mode: isDirectory | 0o755})
}

func (a *archive) link(name, target string) error {
	return a.entry(name, entry{mode: isLink | 0o777, content: []byte(target)})
}

func (a *archive) device(name string, major, minor int) error {
	return a.entry(name, entry{mode: isCharacter | 0o600, major: major, minor: minor})
}

func (a *archive) file(name string, mode uint32, content []byte) error {
	return a.entry(name, entry{mode: isRegular | mode, content: content})
}

// add writes a file or a whole directory of this machine, links followed. Of a
// program that is linked dynamically its libraries come along, to where the
// dynamic linker looks for them.
func (a *archive) add(name, source string) error {
	return filepath.WalkDir(source, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Stat(file)
		if err != nil || info.IsDir() {
			return err
		}
		below, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := a.file(path.Join(name, filepath.ToSlash(below)), uint32(info.Mode().Perm()), content); err != nil {
			return err
		}
		return a.libraries(file)
	})
}

// libraries adds those of an ELF file, and theirs.
func (a *archive) libraries(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return nil // no program
	}
	defer f.Close()
	if section := f.Section(".interp"); section != nil {
		linker, err := section.Data()
		if err != nil {
			return err
		}
		name := strings.TrimRight(string(linker), "\x00")
		if err := a.addLibrary(name, name); err != nil {
			return err
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return nil
	}
	for _, library := range needed {
		found := ""
		for _, dir := range []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib"} {
			if _, err := os.Stat(filepath.Join(dir, library)); err == nil {
				found = filepath.Join(dir, library)
				break
			}
		}
		if found == "" {
			return fmt.Errorf("library %s of %s not found", library, file)
		}
		if err := a.addLibrary(found, found); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) addLibrary(name, source string) error {
	if a.names[strings.TrimPrefix(name, "/")] {
		return nil
	}
	return a.add(name, source)
}

// close writes the end of the archive.
func (a *archive) close() error {
	if err := a.write("TRAILER!!!", entry{}); err != nil {
		return err
	}
	if err := a.pad(512); err != nil {
		return err
	}
	return a.out.Flush()
}
