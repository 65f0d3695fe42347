package podrun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/netns"
)

// sandbox is a thread of this process with a mount namespace of its own, in the
// Pod's network namespace. The Pod's volumes are mounted there and nowhere else,
// and its containers are children of this thread: kernel and kubelet alike hold
// a Pod together by one long-lived process, here it is a thread, so that nothing
// of the Pod can outlive its maker.
type sandbox struct {
	dir   string // a tmpfs inside, an empty directory outside
	tid   int
	calls chan func()
	done  chan struct{}
}

func newSandbox(network *netns.NS) (*sandbox, error) {
	dir, err := os.MkdirTemp("", "vpngw-pod-")
	if err != nil {
		return nil, fmt.Errorf("directory of the pod: %w", err)
	}
	s := &sandbox{dir: dir, calls: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go s.serve(network, ready)
	if err := <-ready; err != nil {
		<-s.done
		return nil, errors.Join(fmt.Errorf("sandbox of the pod: %w", err), os.Remove(dir))
	}
	return s, nil
}

// serve is the thread. It is never unlocked and so ends with this goroutine.
func (s *sandbox) serve(network *netns.NS, ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// What the first thread sees is what /proc/self shows to all of them. While
		// this goroutine holds it, another one gets another thread.
		defer runtime.UnlockOSThread()
		go s.serve(network, ready)
		<-s.done
		return
	}
	defer close(s.done)
	home, err := openNamespaces("net", "mnt")
	if err != nil {
		ready <- err
		return
	}
	defer home.restore() // a thread that outlives us must not keep the Pod's namespaces alive
	s.tid = unix.Gettid()
	if err := s.enter(network); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for call := range s.calls {
		call()
	}
}

func (s *sandbox) enter(network *netns.NS) error {
	if err := unix.Setns(network.Fd(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", s.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("tmpfs on %s: %w", s.dir, err)
	}
	return nil
}

// do calls f on the thread. f sees the Pod's volumes below s.dir.
func (s *sandbox) do(f func() error) error {
	result := make(chan error)
	s.calls <- func() { result <- f() }
	return <-result
}

// path is the sandbox's view of a path, for every thread and process that may
// look at this one's (root).
func (s *sandbox) path(elem ...string) string {
	root := fmt.Sprintf("/proc/%d/task/%d/root", os.Getpid(), s.tid)
	return filepath.Join(append([]string{root, s.dir}, elem...)...)
}

func (s *sandbox) close() error {
	close(s.calls)
	<-s.done
	if err := os.Remove(s.dir); err != nil {
		return fmt.Errorf("directory of the pod: %w", err)
	}
	return nil
}

// namespaces are open namespaces of a thread, by type.
type namespaces map[string]*os.File

// openNamespaces opens the calling thread's namespaces of the given types, as
// they are called under /proc/PID/ns.
func openNamespaces(types ...string) (namespaces, error) {
	n := namespaces{}
	for _, t := range types {
		f, err := os.Open("/proc/thread-self/ns/" + t)
		if err != nil {
			n.close()
			return nil, fmt.Errorf("namespace of this thread: %w", err)
		}
		n[t] = f
	}
	return n, nil
}

// restore enters and closes all of n.
func (n namespaces) restore() {
	for _, f := range n {
		_ = unix.Setns(int(f.Fd()), 0)
	}
	n.close()
}

func (n namespaces) close() {
	for _, f := range n {
		_ = f.Close()
	}
}
