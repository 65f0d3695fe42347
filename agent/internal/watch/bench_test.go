package watch

import (
	"fmt"
	"path/filepath"
	"testing"
)

// A Secret with a pre-shared key for each of a thousand peers is the costliest
// thing to read: every file takes its system calls.
func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	keys := map[string]string{}
	for i := range 1000 {
		keys[fmt.Sprintf("peer-%05d", i)] = "not a key, but forty-four characters long.."
	}
	newVolume(b, filepath.Join(dir, "psk/team")).swap(keys)
	for b.Loop() {
		if _, err := Read(dir); err != nil {
			b.Fatal(err)
		}
	}
}
