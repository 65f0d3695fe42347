package readiness

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/telemetry"
)

// cluster is an API server in memory, with its kubelets, and the clock.
type cluster struct {
	sync.Mutex
	now   time.Time
	pods  map[string]*Pod
	lease Lease
	// broken is the error that a replica's requests end with.
	broken map[string]error
	// deaf are Pods whose kubelet is dead too.
	deaf map[string]bool
	// apart are pairs of replicas that do not hear each other, whatever they think.
	apart map[[2]string]bool
	// readOnly is the error that changes end with.
	readOnly error
	// patience is how long a replica waits for those that do not answer.
	patience time.Duration
	// slow is how long a replica's requests take.
	slow map[string]time.Duration
	// reads are how many Pods a replica has read.
	reads map[string]int
	// writes are the changes, as "who what".
	writes []string
	// wrote is told of each of them.
	wrote func(what string)
}

// newCluster has Pods whose gates nobody has opened yet.
func newCluster(names ...string) *cluster {
	c := &cluster{
		now: start, pods: map[string]*Pod{}, broken: map[string]error{}, deaf: map[string]bool{}, apart: map[[2]string]bool{},
		slow: map[string]time.Duration{}, reads: map[string]int{}, lease: Lease{Version: "1"}, wrote: func(string) {},
	}
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

// request takes its time, and the lock where it gets through.
func (a access) request(ctx context.Context, isWrite bool) error {
	a.Lock()
	slow := a.slow[a.who]
	a.Unlock()
	if slow > 0 {
		time.Sleep(min(slow, requestTimeout))
	}
	a.Lock()
	err := a.broken[a.who]
	switch {
	case err != nil:
	case isWrite && a.readOnly != nil:
		err = a.readOnly
	case ctx.Err() != nil:
		err = ctx.Err()
	case slow > requestTimeout:
		err = context.DeadlineExceeded
	default:
		return nil
	}
	a.Unlock()
	return err
}

func (a access) write(what string) {
	a.writes = append(a.writes, a.who+" "+what)
	a.wrote(a.who + " " + what)
}

func (a access) Pod(ctx context.Context, name string) (Pod, error) {
	if err := a.request(ctx, false); err != nil {
		return Pod{}, err
	}
	defer a.Unlock()
	a.reads[a.who]++
	p := a.pods[name]
	if p == nil {
		return Pod{}, fmt.Errorf("pod %s: %w", name, ErrGone)
	}
	return *p, nil
}

func (a access) SetConditions(ctx context.Context, name, uid string, conditions []Condition) error {
	if err := a.request(ctx, true); err != nil {
		return err
	}
	defer a.Unlock()
	p, err := a.own(name, uid)
	if err != nil {
		return err
	}
	what := name
	for _, condition := range conditions {
		what += " " + condition.Type[strings.LastIndex(condition.Type, "/")+1:] + "=" + condition.Status
		switch condition.Type {
		case GateType:
			p.Gate, p.Reason = condition.Status, condition.Reason
		case typeReady:
			p.Ready = condition.Status
		}
	}
	a.kubelet(name)
	a.write(what)
	return nil
}

func (a access) Beat(ctx context.Context, name, uid string, at time.Time) (Pod, error) {
	if err := a.request(ctx, true); err != nil {
		return Pod{}, err
	}
	defer a.Unlock()
	p, err := a.own(name, uid)
	if err != nil {
		return Pod{}, err
	}
	p.Beat = at.Format(time.RFC3339)
	a.write(name + " beat")
	return *p, nil
}

// own is the Pod that has a name and a UID.
func (a access) own(name, uid string) (*Pod, error) {
	p := a.pods[name]
	switch {
	case p == nil:
		return nil, fmt.Errorf("pod %s: %w", name, ErrGone)
	case p.UID != uid:
		return nil, fmt.Errorf("pod %s: %w", name, ErrConflict)
	}
	return p, nil
}

func (a access) Lease(ctx context.Context) (Lease, error) {
	if err := a.request(ctx, false); err != nil {
		return Lease{}, err
	}
	defer a.Unlock()
	return a.lease, nil
}

func (a access) SetLease(ctx context.Context, l Lease) (Lease, error) {
	if err := a.request(ctx, true); err != nil {
		return Lease{}, err
	}
	defer a.Unlock()
	if l.Version != a.lease.Version {
		return Lease{}, fmt.Errorf("lease: %w", ErrConflict)
	}
	version, _ := strconv.Atoi(l.Version)
	l.Version = strconv.Itoa(version + 1)
	a.lease = l
	a.write("lease=" + l.Holder)
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
				c.Lock()
				defer c.Unlock()
				var list []Member
				for _, m := range r.members {
					list = append(list, m)
				}
				return list
			},
			Answering: func(names []string) []string {
				c.Lock()
				answering := slices.DeleteFunc(slices.Clone(names), func(other string) bool { return c.apart[[2]string{name, other}] })
				c.Unlock()
				if len(answering) < len(names) {
					time.Sleep(c.patience)
				}
				return answering
			},
			Log:     slog.New(slog.NewTextHandler(io.MultiWriter(r.log, t.Output()), nil)),
			Metrics: telemetry.NewReadinessCounters(prometheus.NewRegistry(), Refusals()),
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
			c.apart[[2]string{r.name, string(other)}] = state == Dead
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
