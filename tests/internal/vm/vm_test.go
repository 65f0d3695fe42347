package vm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

// That a machine boots and runs a program is the subject of tests/integration:
// here are the parts.

func TestArchive(t *testing.T) {
	source := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/plain": 0o644, "a/b/run": 0o755} {
		path := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("plain", filepath.Join(source, "a/link")); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	a := newArchive(&out)
	for _, err := range []error{
		a.add("/data", source), a.add("/again/plain", filepath.Join(source, "a/plain")),
		a.link("/var/run", "../run"), a.device("/dev/null", 1, 3), a.directory("/tmp"), a.directory("tmp"),
		a.file("/etc/x.json", 0o600, []byte("{}")), a.close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := readArchive(t, out.Bytes())
	want := map[string]string{
		"data": "40755", "data/a": "40755", "data/a/b": "40755", "again": "40755", "var": "40755", "dev": "40755", "tmp": "40755", "etc": "40755",
		"data/a/plain": "100644 a/plain", "data/a/link": "100644 a/plain", "data/a/b/run": "100755 a/b/run", "again/plain": "100644 a/plain",
		"var/run": "120777 ../run", "dev/null": "20600 device 1:3", "etc/x.json": "100600 {}",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

// readArchive reads a cpio archive as the kernel does (unpack_to_rootfs in
// init/initramfs.c): name → mode and content.
func readArchive(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for offset := 0; ; {
		header := archive[offset : offset+110]
		if string(header[:6]) != "070701" {
			t.Fatalf("no header at %d", offset)
		}
		var field [13]int
		for i := range field {
			n, err := strconv.ParseUint(string(header[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			field[i] = int(n)
		}
		const mode, size, major, minor, nameSize = 1, 6, 9, 10, 11
		name := string(archive[offset+110 : offset+110+field[nameSize]-1])
		if name == "TRAILER!!!" {
			return out
		}
		content := (offset + 110 + field[nameSize] + 3) &^ 3
		text := strconv.FormatInt(int64(field[mode]), 8)
		if field[size] > 0 {
			text += " " + string(archive[content:content+field[size]])
		}
		if field[major] != 0 {
			text += fmt.Sprintf(" device %d:%d", field[major], field[minor])
		}
		if _, twice := out[name]; twice {
			t.Errorf("%s is in the archive twice", name)
		}
		out[name] = text
		offset = (content + field[size] + 3) &^ 3
	}
}

// A program brings its libraries, and those theirs.
func TestLibraries(t *testing.T) {
	testenv.Need(t, amd64())
	tool := testenv.MustTool(t, "nft")
	var out bytes.Buffer
	a := newArchive(&out)
	if err := a.add("/usr/sbin/nft", tool); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"usr/sbin/nft", "libnftables.so", "libnftnl.so", "libc.so", "/ld-linux"} {
		found := false
		for name := range a.names {
			found = found || strings.Contains(name, part)
		}
		if !found {
			t.Errorf("%v, want %s among them", a.names, part)
		}
	}
}

func TestModules(t *testing.T) {
	testenv.Need(t, Needs())
	kernel, err := FindKernel()
	if err != nil {
		t.Fatal(err)
	}
	files, err := kernel.modules([]string{"wireguard", "nft-ct", "unix", "wireguard"})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, f := range files {
		order = append(order, normal(filepath.Base(f)))
	}
	for _, pair := range [][2]string{{"udp_tunnel", "wireguard"}, {"nf_conntrack", "nft_ct"}, {"nf_tables", "nft_ct"}} {
		if first, second := slices.Index(order, pair[0]), slices.Index(order, pair[1]); first < 0 || second < first {
			t.Errorf("order %v, want %s before %s", order, pair[0], pair[1])
		}
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(order))); len(sorted) != len(order) || slices.Contains(order, "unix") {
		t.Errorf("order %v, want each once, and none that is built in", order)
	}
	if _, err := kernel.modules([]string{"no-such-thing"}); err == nil || !strings.Contains(err.Error(), "has no module no_such_thing") {
		t.Errorf("error %v, want that there is no such module", err)
	}
}

// The program's status comes over the same line as its output.
func TestRelay(t *testing.T) {
	var out bytes.Buffer
	status, err := relay(&out, strings.NewReader("one\r\ntwo\r\n"+exitLine+"3\r\n"))
	if err != nil || status != "3" {
		t.Errorf("status %q, error %v, want 3", status, err)
	}
	if diff := cmp.Diff("one\ntwo\n", out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	if status, err := relay(&out, strings.NewReader("kernel panic")); err != nil || status != "" {
		t.Errorf("status %q, error %v, want none", status, err)
	}
}
