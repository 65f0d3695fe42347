package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/cgroup"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/layout"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/mountinfo"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/netns"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/network"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/progress"
	"github.com/cloud-native-vpn/vpn-gateway/tests/cluster/internal/topology"
)

// Down ends the cluster and removes everything of it but what was built. It
// goes on after a failure, removes what it can, and is no error where nothing
// is up. state is where a cluster's directory lies that no record tells of.
func Down(ctx context.Context, state string, p *progress.Printer) error {
	return exclusively(func() error {
		r, err := load()
		if errors.Is(err, ErrDown) {
			r, err = &record{State: state}, nil
		}
		if err != nil {
			return err
		}
		failed := []error{}
		for name, ref := range r.Machines {
			if err := ref.Kill(ctx); err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", name, err))
			}
		}
		failed = append(failed, removeNetworks(p), removeCgroups())
		if err := errors.Join(failed...); err != nil {
			return err // the record stays: another call can try again
		}
		if err := removeTree(r.State); err != nil {
			return err
		}
		return os.RemoveAll(layout.RuntimeDir)
	})
}

// machines are the names of all machines that any cluster can have.
func machines() []string {
	names := []string{topology.Client}
	for i := 1; i <= topology.MaxNodes; i++ {
		names = append(names, "n"+strconv.Itoa(i))
	}
	return append(names, topology.ControlPlane) // last: the others are plugged into it
}

// removeNetworks removes the network namespaces. Processes that somebody else
// started in one are not ours to end; it lives on, nameless, until they do.
func removeNetworks(p *progress.Printer) error {
	var failed []error
	for _, name := range machines() {
		ns := topology.Netns(name)
		if !netns.Exists(ns) {
			continue
		}
		if strangers := processesIn(ns); len(strangers) > 0 {
			p.Say("still in network namespace %s, and left alone: %s", ns, strings.Join(strangers, ", "))
		}
		failed = append(failed, network.Detach(name))
	}
	return errors.Join(failed...)
}

// processesIn lists processes in a network namespace, this program excepted.
func processesIn(ns string) []string {
	want, err := os.Stat(netns.Path(ns))
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		have, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil || !os.SameFile(want, have) {
			continue
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			continue // it has just ended
		}
		found = append(found, fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(name)), pid))
	}
	return found
}

func removeCgroups() error {
	hierarchies, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range machines() {
		failed = append(failed, cgroup.Remove(hierarchies, name))
	}
	return errors.Join(failed...)
}

// removeTree removes a directory, and refuses where something is mounted in
// it: that would be emptied too.
func removeTree(dir string) error {
	mounts, err := mountinfo.Read()
	if err != nil {
		return err
	}
	if below := mountinfo.Below(mounts, dir); len(below) > 0 {
		return fmt.Errorf("remove %s: something is mounted at %s: unmount it first", dir, strings.Join(below, ", "))
	}
	return os.RemoveAll(dir)
}
