package readiness

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var errUnreachable = errors.New("no route to host")

// stagger is between two siblings whose deaths a replica notices.
const stagger = 400 * time.Millisecond

// world is a cluster in a bubble of package synctest, where its replicas run at the same
// time: requests take as long as they take, and nobody waits for another one's.
type world struct {
	*cluster
	t        *testing.T
	replicas map[string]*replica
	changes  map[string]chan struct{}
	end      map[string]context.CancelFunc
	running  sync.WaitGroup
	began    time.Time
	// marks are who marked whom, the last one at a time after the beginning.
	marks  []string
	marked time.Duration
	// beats are how many proofs of life a replica gave.
	beats map[string]int
	// none says that there was a moment without any Pod in service.
	none bool
}

// newWorld has replicas in service that run and see one another.
func newWorld(t *testing.T, names string) *world {
	t.Helper()
	list := strings.Split(names, "")
	w := &world{
		cluster: newCluster(list...), t: t,
		changes: map[string]chan struct{}{}, end: map[string]context.CancelFunc{}, beats: map[string]int{},
	}
	w.now, w.patience = time.Now(), 150*time.Millisecond
	w.replicas = w.cluster.replicas(t, list...)
	time.Sleep(time.Until(w.now))
	w.began = w.now
	w.wrote = func(what string) {
		words := strings.Fields(what)
		switch words[len(words)-1] {
		case "beat":
			w.beats[words[0]]++
		case "Ready=False":
			w.marks = append(w.marks, strings.Join(words[:2], " "))
			w.marked = time.Since(w.began)
		}
		w.none = w.none || w.ready() == ""
	}
	for _, name := range list {
		w.changes[name] = make(chan struct{}, 1)
	}
	for _, name := range list {
		w.start(name)
	}
	return w
}

// start runs a controller that knows nothing, but what it knew before the world began.
func (w *world) start(name string) {
	r := w.replicas[name]
	known := r.Controller
	options := known.Options
	options.Now, options.Changes = time.Now, w.changes[name]
	c := New(options)
	if w.end[name] == nil {
		c.own, c.lease = known.own, known.lease
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	r.Controller, w.end[name] = c, cancel
	w.running.Go(func() { c.Run(ctx) })
}

// stop ends all replicas.
func (w *world) stop() {
	for _, end := range w.end {
		end()
	}
	w.running.Wait()
}

// restart has a replica forget everything but its siblings.
func (w *world) restart(name string) {
	w.end[name]()
	w.start(name)
}

// crash is the end of nodes with all that is on them.
func (w *world) crash(names string) {
	w.Lock()
	for _, name := range names {
		w.broken[string(name)], w.deaf[string(name)] = errUnreachable, true
		for other := range w.pods {
			w.apart[[2]string{other, string(name)}] = true
		}
	}
	w.Unlock()
	for _, name := range names {
		w.end[string(name)]()
	}
}

// notice has replicas see others in a state, after a time.
func (w *world) notice(after time.Duration, who, whom string, state State) {
	w.running.Go(func() {
		time.Sleep(after)
		for _, name := range who {
			w.Lock()
			for _, other := range strings.ReplaceAll(whom, string(name), "") {
				w.replicas[string(name)].members[string(other)] = Member{Name: string(other), State: state, Since: time.Now()}
			}
			w.Unlock()
			select {
			case w.changes[string(name)] <- struct{}{}:
			default:
			}
		}
	})
}

// noticeEach has replicas see others dead, one after the other.
func (w *world) noticeEach(after time.Duration, who, whom string) {
	for i, other := range whom {
		w.notice(after+time.Duration(i)*stagger, who, string(other), Dead)
	}
}

// isolate parts all replicas from one another. The last one notices it a time after the
// first one does.
func (w *world) isolate(skew time.Duration) {
	names := slices.Sorted(maps.Keys(w.pods))
	w.part(names...)
	for i, name := range names {
		others := strings.Join(append(slices.Clone(names[i+1:]), names[:i]...), "")
		w.noticeEach(skew*time.Duration(i)/time.Duration(len(names)-1), name, others)
	}
}

// part parts groups from one another.
func (w *world) part(groups ...string) {
	w.Lock()
	defer w.Unlock()
	w.cluster.part(groups...)
}

// heal has all hear each other again, and notice it.
func (w *world) heal() {
	names := strings.Join(slices.Sorted(maps.Keys(w.pods)), "")
	w.part(names)
	w.notice(time.Second, names, names, Alive)
}

// reach says whether replicas reach the API server, and how long it takes to answer.
func (w *world) reach(who string, err error, slow time.Duration) {
	w.Lock()
	defer w.Unlock()
	for _, name := range who {
		w.broken[string(name)], w.slow[string(name)] = err, slow
	}
}

// changesFail has the API server answer to reads alone, where err is not nil.
func (w *world) changesFail(err error) {
	w.Lock()
	defer w.Unlock()
	w.readOnly = err
}

// inService are the Pods in service.
func (w *world) inService() string {
	w.Lock()
	defer w.Unlock()
	return w.ready()
}
