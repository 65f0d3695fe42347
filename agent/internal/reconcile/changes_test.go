package reconcile

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// With many peers, to look at them takes longer than all else together.
func TestChangesComeBeforeTheLook(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	r.step()
	r.device.calls = nil
	r.write("peers:\n" + peer(2, "") + peer(3, ""))
	r.want("peers touched", r.step(), []string{"add p3"})
	r.want("calls", r.device.calls, []string{"apply", "observe"})
	r.device.calls = nil
	r.want("peers touched by an idle run", r.step(), []string(nil))
	r.want("calls of an idle run", r.device.calls, []string{"observe"})
}

func TestChangesToASystemThatIsNotAsItWas(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, "")+peer(3, ""))
	r.step()
	delete(r.device.blue().Device.Peers, publicKey(2)) // by hand
	r.write("peers:\n" + peer(2, ", persistentKeepalive: 25"))
	r.want("peers touched", r.step(), []string{"remove p3", "update p2", "add p2"})
	r.want("keepalive", r.device.blue().Device.Peers[publicKey(2)].Keepalive, 25*time.Second)
	r.want("peers", len(r.device.blue().Device.Peers), 1)
	r.want("generation", r.Status().Generation, uint64(2))
}

func TestChangesThatFailAreMadeUpFor(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	r.step()
	r.write("peers:\n" + peer(2, "") + peer(3, ""))
	r.device.errs = []error{errors.New("no such address")}
	r.want("peers touched", r.step(), []string{"add p3"})
	r.want("table made anew", r.firewall.applied[len(r.firewall.applied)-1].Replace, true)
	r.want("last reload", r.Status().Reloads.LastOK, true)
	r.want("failing conditions", r.failing(), []string(nil))
}

func TestReloadSaysWhereTheTimeWent(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	r.step()
	r.log.Reset()
	r.write("peers:\n" + peer(3, ""))
	r.step()
	const want = "stagesMs.read=0 stagesMs.load=0 stagesMs.uplink=0 stagesMs.build=0 stagesMs.diff=0 stagesMs.apply=0 stagesMs.observe=0 stagesMs.compare=0"
	if !strings.Contains(r.log.String(), want) {
		t.Errorf("the log does not say %s:\n%s", want, r.log.String())
	}
}

// Reloads are announced, and only they: a look at the system is no reason to
// spend memory.
func TestReloading(t *testing.T) {
	r := newRig(t, "peers:\n"+peer(2, ""))
	var calls []string
	r.Reloading = func() func() {
		calls = append(calls, "begin")
		return func() { calls = append(calls, "end") }
	}
	steps := []struct {
		name  string
		files func()
		want  []string
	}{
		{"first run", func() {}, []string{"begin", "end"}},
		{"nothing new", func() {}, nil},
		{"a change", func() { r.write("peers:\n" + peer(3, "")) }, []string{"begin", "end"}},
		{"a change that is refused", func() { r.write("peers: 1\n") }, []string{"begin", "end"}},
		{"the same again", func() {}, nil},
	}
	for _, s := range steps {
		calls = nil
		s.files()
		r.step()
		r.want(s.name, calls, s.want)
	}
}
