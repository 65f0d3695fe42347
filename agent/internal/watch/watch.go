package watch

import (
	"context"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options of a [Watcher].
type Options struct {
	// Dir is the configuration directory; every visible directory below it is
	// watched.
	Dir string
	// Quiet is how long the directory must stay still before a change is
	// reported; Longest is how long a report may be put off by more changes.
	Quiet, Longest time.Duration
	Log            *slog.Logger
}

// Watcher says when something below a directory may have changed. It does not
// say what: the reader compares contents.
type Watcher struct {
	options Options
	changed chan struct{}
	events  *fsnotify.Watcher
}

// New starts watching. Where the kernel has no inotify instance left
// (fs.inotify.max_user_instances is shared by all Pods of a user on the node),
// the error is fsnotify's, and the caller goes on by polling.
func New(o Options) (*Watcher, error) {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	w := &Watcher{options: o, changed: make(chan struct{}, 1), events: events}
	if err := w.addAll(); err != nil {
		_ = events.Close()
		return nil, err
	}
	return w, nil
}

// Changed receives after changes have settled. Reports that nobody has
// received yet count as one.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Run reports changes until ctx is done.
func (w *Watcher) Run(ctx context.Context) {
	defer func() { _ = w.events.Close() }()
	var settled <-chan time.Time // nil while nothing is pending
	var deadline time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case event, ok := <-w.events.Events:
			if !ok {
				return
			}
			if !visible(event.Name) {
				continue
			}
			// No event type is filtered out: the kubelet's swap is a rename, an
			// editor's a write, a lost permission a chmod.
			now := time.Now()
			if settled == nil {
				deadline = now.Add(w.options.Longest)
			}
			settled = time.After(min(w.options.Quiet, deadline.Sub(now)))
		case err, ok := <-w.events.Errors:
			if !ok {
				return
			}
			// An overflow means lost events; what is lost is 'may have changed'.
			w.options.Log.Warn("watching files", "error", err)
			settled = time.After(w.options.Quiet)
		case <-settled:
			settled = nil
			if err := w.addAll(); err != nil {
				w.options.Log.Warn("watching files", "error", err)
			}
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	}
}

// visible tells what may show in a reading from what the kubelet does before and
// after its swap: to write a new version of thousands of files, and to remove the
// old one, takes longer than the directory has to be quiet.
func visible(path string) bool {
	name := filepath.Base(path)
	return name == dataLink || !strings.HasPrefix(name, "..")
}

// addAll watches every directory that is not watched yet: a Secret's directory
// may appear later in a tree that is kept by hand.
func (w *Watcher) addAll() error {
	return filepath.WalkDir(w.options.Dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil && path == w.options.Dir:
			return err
		case err != nil:
			return nil // gone or unreadable: reading says so, with its path
		case !d.IsDir():
			return nil
		case path != w.options.Dir && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir // the kubelet's versions, new ones each time
		}
		return w.events.Add(path)
	})
}
