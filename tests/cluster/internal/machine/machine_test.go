package machine

import (
	"os"
	"testing"
)

func TestParseStat(t *testing.T) {
	const fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"
	tests := []struct {
		name, text string
		state      byte
		started    uint64
	}{
		{"plain", "77 (kubelet) " + fields, 'S', 4242},
		{"brackets and blanks in the name", "77 (a) Z (b) " + fields, 'S', 4242},
		{"a zombie", "77 (kubelet) Z" + fields[1:], 'Z', 4242},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			started, state, err := parseStat(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if started != tt.started || state != tt.state {
				t.Errorf("got %d %c, want %d %c", started, state, tt.started, tt.state)
			}
		})
	}
	for _, text := range []string{"", "77 (x) S 1 2", "77 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20"} {
		if _, _, err := parseStat(text); err == nil {
			t.Errorf("parseStat(%q): no error", text)
		}
	}
}

func TestAlive(t *testing.T) {
	started, _, err := stat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		ref  Ref
		want bool
	}{
		{"this process", Ref{PID: os.Getpid(), Started: started}, true},
		{"an earlier one of the same pid", Ref{PID: os.Getpid(), Started: started - 1}, false},
		{"never started", Ref{}, false},
	}
	for _, tt := range tests {
		if got := tt.ref.Alive(); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}
