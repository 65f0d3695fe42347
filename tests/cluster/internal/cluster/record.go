package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/config"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/layout"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/machine"
)

// Settings are what a user may choose about a cluster.
type Settings struct {
	// Nodes is how many there are.
	Nodes int `json:"nodes"`
	// KubeletSet are fields of KubeletConfiguration by dotted path, YAML values.
	KubeletSet map[string]string `json:"kubeletSet,omitempty"`
	// Flags are further flags of the daemons.
	Flags config.ExtraFlags `json:"flags"`
}

// record is what the program must know of the running cluster from one call
// to the next.
type record struct {
	// State is the directory with everything of the running cluster.
	State    string   `json:"state"`
	Settings Settings `json:"settings"`
	// Machines are the running ones, and those that have crashed, by name.
	Machines map[string]machine.Ref `json:"machines"`
}

// ErrDown is returned by what needs a running cluster where there is none.
var ErrDown = errors.New("no cluster is up: start one with `cluster up`")

func recordFile() string { return filepath.Join(layout.RuntimeDir, "cluster.json") }

// load reads the record; ErrDown without one.
func load() (*record, error) {
	text, err := os.ReadFile(recordFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrDown
	}
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", recordFile(), err)
	}
	return r, nil
}

// save writes the record, whole or not at all.
func (r *record) save() error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	fresh := recordFile() + ".new"
	if err := os.WriteFile(fresh, text, 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, recordFile())
}

// exclusively runs f while no other call changes the cluster.
func exclusively(f func() error) error {
	if err := os.MkdirAll(layout.RuntimeDir, 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(layout.RuntimeDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	return f()
}
