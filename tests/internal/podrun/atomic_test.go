package podrun

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// volumeFiles lists what a volume shows: path → link target, or mode and content.
func volumeFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	stamp := regexp.MustCompile(`^\.\.\d{4}(_\d\d){5}\.\d+$`)
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if target, err := os.Readlink(path); err == nil {
			out[e.Name()] = "-> " + stamp.ReplaceAllString(target, "STAMP")
			continue
		}
		if !stamp.MatchString(e.Name()) {
			t.Errorf("%s is neither a link nor a time-stamped directory", path)
			continue
		}
		err := filepath.Walk(path, func(file string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			content, err := os.ReadFile(file)
			out["STAMP"+strings.TrimPrefix(file, path)] = info.Mode().String() + " " + string(content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestWriteAtomic(t *testing.T) {
	dir := t.TempDir()
	file := func(content string) projectedFile { return projectedFile{[]byte(content), 0o400} }
	steps := []struct {
		name  string
		files payload
		swaps bool
		want  map[string]string
	}{
		{
			name: "first", files: payload{"a": file("1"), "sub/b": file("2"), "sub/c": file("3")}, swaps: true,
			want: map[string]string{
				"..data": "-> STAMP", "a": "-> ..data/a", "sub": "-> ..data/sub",
				"STAMP/a": "-r-------- 1", "STAMP/sub/b": "-r-------- 2", "STAMP/sub/c": "-r-------- 3",
			},
		},
		{
			name: "same again", files: payload{"a": file("1"), "sub/b": file("2"), "sub/c": file("3")},
			want: map[string]string{
				"..data": "-> STAMP", "a": "-> ..data/a", "sub": "-> ..data/sub",
				"STAMP/a": "-r-------- 1", "STAMP/sub/b": "-r-------- 2", "STAMP/sub/c": "-r-------- 3",
			},
		},
		{
			name: "one changed, one gone, one new", files: payload{"a": file("9"), "d": file("4")}, swaps: true,
			want: map[string]string{
				"..data": "-> STAMP", "a": "-> ..data/a", "d": "-> ..data/d",
				"STAMP/a": "-r-------- 9", "STAMP/d": "-r-------- 4",
			},
		},
		{
			name: "a mode only", files: payload{"a": {[]byte("9"), 0o644}, "d": file("4")}, swaps: true,
			want: map[string]string{
				"..data": "-> STAMP", "a": "-> ..data/a", "d": "-> ..data/d",
				"STAMP/a": "-rw-r--r-- 9", "STAMP/d": "-r-------- 4",
			},
		},
		{name: "empty", files: payload{}, swaps: true, want: map[string]string{"..data": "-> STAMP"}},
	}
	for _, step := range steps {
		at, err := writeAtomic(dir, step.files, -1)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if swapped := !at.IsZero(); swapped != step.swaps {
			t.Errorf("%s: swapped = %t, want %t", step.name, swapped, step.swaps)
		}
		if diff := cmp.Diff(step.want, volumeFiles(t, dir)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
	}
}
