package readiness

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// cluster is an API server in memory, with its kubelets, and the clock.
type cluster struct {
	now   time.Time
	pods  map[string]*Pod
	lease Lease
	// broken is the error that a replica's requests end with.
	broken map[string]error
	// deaf are Pods whose kubelet is dead too.
	deaf map[string]bool
	// apart are pairs of replicas that do not hear each other, whatever they think.
	apart map[[2]string]bool
	// writes are the changes, as "who what".
	writes []string
}

// newCluster has Pods whose gates nobody has opened yet.
func newCluster(names ...string) *cluster {
	c := &cluster{now: start, pods: map[string]*Pod{}, broken: map[string]error{}, deaf: map[string]bool{}, apart: map[[2]string]bool{}, lease: Lease{Version: "1"}}
	for _, name := range names {
		c.pods[name] = &Pod{UID: "uid-" + name}
	}
	return c
}

// kubelet derives Ready from the gate, where it lives.
func (c *cluster) kubelet(name string) {
	if p := c.pods[name]; p != nil && !c.deaf[name] {
		p.Ready = statusFalse
		if p.Gate == statusTrue {
			p.Ready = statusTrue
		}
	}
}

// as is the API server as one replica has it.
func (c *cluster) as(name string) API { return access{c, name} }

type access struct {
	*cluster
	who string
}

func (a access) Pod(_ context.Context, name string) (Pod, error) {
	if err := a.broken[a.who]; err != nil {
		return Pod{}, err
	}
	p := a.pods[name]
	if p == nil {
		return Pod{}, fmt.Errorf("pod %s: %w", name, ErrGone)
	}
	return *p, nil
}

func (a access) SetConditions(_ context.Context, name, uid string, conditions []Condition) error {
	if err := a.broken[a.who]; err != nil {
		return err
	}
	p := a.pods[name]
	switch {
	case p == nil:
		return fmt.Errorf("pod %s: %w", name, ErrGone)
	case p.UID != uid:
		return fmt.Errorf("pod %s: %w", name, ErrConflict)
	}
	words := []string{a.who, name}
	for _, condition := range conditions {
		words = append(words, condition.Type[strings.LastIndex(condition.Type, "/")+1:]+"="+condition.Status)
		switch condition.Type {
		case GateType:
			p.Gate = condition.Status
		case typeReady:
			p.Ready = condition.Status
		}
	}
	a.writes = append(a.writes, strings.Join(words, " "))
	a.kubelet(name)
	return nil
}

func (a access) Lease(context.Context) (Lease, error) { return a.lease, a.broken[a.who] }

func (a access) SetLease(_ context.Context, l Lease) (Lease, error) {
	if err := a.broken[a.who]; err != nil {
		return Lease{}, err
	}
	if l.Version != a.lease.Version {
		return Lease{}, fmt.Errorf("lease: %w", ErrConflict)
	}
	version, _ := strconv.Atoi(l.Version)
	l.Version = strconv.Itoa(version + 1)
	a.lease = l
	a.writes = append(a.writes, a.who+" lease="+l.Holder)
	return l, nil
}

// replica is a controller with what it sees of the fleet.
type replica struct {
	*Controller
	name    string
	members map[string]Member
	next    time.Time
	log     *strings.Builder
	stopped bool // it runs no more
}

// replicas are controllers that see one another, all in service.
func (c *cluster) replicas(t *testing.T, names ...string) map[string]*replica {
	t.Helper()
	out := map[string]*replica{}
	for _, name := range names {
		r := &replica{name: name, members: map[string]Member{}, log: &strings.Builder{}}
		for _, member := range names {
			r.members[member] = Member{Name: member, Since: c.now}
		}
		r.Controller = New(Options{
			API: c.as(name), Self: name, Now: func() time.Time { return c.now },
			Members: func() []Member {
				var list []Member
				for _, m := range r.members {
					list = append(list, m)
				}
				return list
			},
			Answering: func(names []string) []string {
				return slices.DeleteFunc(slices.Clone(names), func(other string) bool { return c.apart[[2]string{name, other}] })
			},
			Log:     slog.New(slog.NewTextHandler(io.MultiWriter(r.log, t.Output()), nil)),
			Metrics: telemetry.NewReadinessCounters(prometheus.NewRegistry()),
		})
		out[name] = r
	}
	c.run(t, out, time.Second)
	c.writes = nil
	return out
}

// see has replicas, by their names without a space, see others in a state.
func (c *cluster) see(replicas map[string]*replica, who, whom string, state State) {
	for _, name := range who {
		r := replicas[string(name)]
		for _, other := range whom {
			r.members[string(other)] = Member{Name: string(other), State: state, Since: c.now}
		}
		r.changed()
		r.next = c.now
	}
}

// cut parts two groups of replicas, which see each other dead.
func (c *cluster) cut(replicas map[string]*replica, one, other string) {
	c.see(replicas, one, other, Dead)
	c.see(replicas, other, one, Dead)
}

// part keeps groups of replicas from hearing each other, which nobody notices yet.
func (c *cluster) part(groups ...string) {
	for i, group := range groups {
		for j, other := range groups {
			for _, a := range group {
				for _, b := range other {
					c.apart[[2]string{string(a), string(b)}] = i != j
				}
			}
		}
	}
}

// run lets time pass, in which each replica does what is due.
func (c *cluster) run(t *testing.T, replicas map[string]*replica, long time.Duration) {
	t.Helper()
	for end := c.now.Add(long); c.now.Before(end); c.now = c.now.Add(10 * time.Millisecond) {
		for name := range c.pods {
			if r := replicas[name]; r != nil && !r.stopped && !r.next.After(c.now) {
				r.next = r.step(t.Context())
				if !r.next.After(c.now) {
					t.Fatalf("%s wants to be called again at once", name)
				}
			}
		}
	}
}

// ready are the Pods in service.
func (c *cluster) ready() string {
	var out string
	for name := 'a'; name <= 'z'; name++ {
		if p := c.pods[string(name)]; p != nil && p.Ready == statusTrue {
			out += string(name)
		}
	}
	return out
}
