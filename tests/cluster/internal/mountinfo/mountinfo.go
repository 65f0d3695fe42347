// Package mountinfo lists what is mounted, as proc_pid_mountinfo(5) tells it.
package mountinfo

import (
	"fmt"
	"os"
	"strings"
)

// Mount is one mount of the calling process's mount namespace.
type Mount struct {
	// Point is where it is mounted.
	Point string
	// Type is the file system's.
	Type string
	// Options are those of the file system, not of this mount of it.
	Options []string
}

// Read lists all mounts, oldest first.
func Read() ([]Mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	return Parse(string(text)), nil
}

// Parse reads the text of a mountinfo file. A line's fifth field is the mount
// point, with blanks and backslashes in octal; after a lone dash follow the
// file system's type, its source and its options.
func Parse(text string) []Mount {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []Mount
	for line := range strings.Lines(text) {
		place, system, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(place), strings.Fields(system)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		mounts = append(mounts, Mount{
			Point:   unescape.Replace(left[4]),
			Type:    right[0],
			Options: strings.Split(right[2], ","),
		})
	}
	return mounts
}

// Below picks the mount points strictly below a directory, newest first: the
// order to unmount them in.
func Below(mounts []Mount, dir string) []string {
	var points []string
	for i := len(mounts) - 1; i >= 0; i-- {
		if strings.HasPrefix(mounts[i].Point, dir+"/") {
			points = append(points, mounts[i].Point)
		}
	}
	return points
}
