package rotate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Kind of key.
type Kind string

// The kinds.
const (
	Server    Kind = "server"
	Preshared Kind = "preshared"
)

// ChangedAnnotation of a Pod has the time at which its keys changed (RFC 3339).
// To touch an annotation makes the kubelet renew the Pod's mounts at once.
const ChangedAnnotation = "vpn-gateway.io/keys-changed"

// JobOptions say what a [Job] does.
type JobOptions struct {
	Kind Kind
	// Secret that the gateway mounts.
	Secret string
	// Source is the Secret to write to, where the one that the gateway mounts is
	// somebody else's; empty: Secret.
	Source string
	// Key is the name of the server key's undated entry.
	Key string
	// Lead is the time from the making of a key to its coming in force.
	Lead time.Duration
	// Publication, with the time for which a server key is answered after the next
	// one came in force.
	Publication Publication
	// PresharedSecrets are all Secrets of pre-shared keys that are rotated, by this
	// job or others, as the gateway mounts them. What is published of runs for others
	// is dropped. Nil where nobody knows: it is kept.
	PresharedSecrets []string
	// AnnotatePods is a label selector; empty is off.
	AnnotatePods string
}

// Validate reports the first option that is wrong, by the name of its flag.
func (o JobOptions) Validate() error {
	_, _, dated := key.ParseServerEntry(o.Key)
	switch {
	case o.Kind != Server && o.Kind != Preshared:
		return fmt.Errorf("--kind %q is unknown; use server or preshared", o.Kind)
	case o.Secret == "":
		return errors.New("--secret is missing; name the Secret that the gateway mounts")
	case o.Source == o.Secret:
		return fmt.Errorf("--source %q is --secret already; leave it out", o.Source)
	case o.Key == "" || dated:
		return fmt.Errorf("--key %q cannot be the name of the entry without a time; use privateKey", o.Key)
	case o.Lead <= 0:
		return fmt.Errorf("--lead %s is not more than zero; give what mounts take to be renewed everywhere, such as 10m", o.Lead)
	case o.Publication.Overlap < 0:
		return fmt.Errorf("--overlap %s is less than zero; use 0s for none", o.Publication.Overlap)
	}
	if _, err := labels.Parse(o.AnnotatePods); err != nil {
		return fmt.Errorf("--annotate-pods %q is no label selector: %w; write it like app.kubernetes.io/instance=vpn", o.AnnotatePods, err)
	}
	return nil
}

// Job is one run of a rotation. Any number may run at once, and each may be ended
// at any time: a Secret changes in one patch or not at all.
type Job struct {
	JobOptions
	Secrets, ConfigMaps Store
	Pods                Pods
	// Log takes names, public keys and times.
	Log *slog.Logger
	// Now is the clock.
	Now func() time.Time
}

// Run makes the next keys where it is time for them, and says what it did. It is
// no error that it is not.
func (j Job) Run(ctx context.Context) error {
	done, err := j.rotate(ctx)
	if err != nil {
		return errors.Join(err, j.publishFailure(ctx, err))
	}
	j.report(ctx, done)
	err = j.publish(ctx, Run{Result: done.result, Message: done.message})
	if err != nil {
		err = fmt.Errorf("the keys are as they should be, but not what is said of them; run it again: %w", err)
	}
	return errors.Join(err, j.annotate(ctx, done))
}

// target is the Secret that is written.
func (j Job) target() string { return cmp.Or(j.Source, j.Secret) }

// rotate reads, decides and writes until nobody else wrote in between.
func (j Job) rotate(ctx context.Context) (step, error) {
	for range attempts {
		r, version, err := j.read(ctx)
		if err != nil {
			return step{}, err
		}
		done, err := j.plan(r)
		if err != nil {
			return step{}, fmt.Errorf("secret %s was not touched:\n%w", j.target(), err)
		}
		if len(done.write) == 0 {
			return done, nil
		}
		err = j.Secrets.Merge(ctx, j.target(), version, done.write)
		if err == nil || !errors.Is(err, ErrConflict) {
			return done, err
		}
	}
	return step{}, busy("secret", j.target(), attempts)
}

func (j Job) read(ctx context.Context) (r reading, version string, err error) {
	r = reading{lead: j.Lead, overlap: j.Publication.Overlap}
	if j.Source != "" {
		// First, since what is there comes from the other one.
		mounted, err := j.Secrets.Get(ctx, j.Secret)
		if err != nil && !apierrors.IsNotFound(err) { // it may still have to be made
			return reading{}, "", err
		}
		r.mounted = mounted.Data
		if r.mounted == nil {
			r.mounted = map[string][]byte{}
		}
	}
	have, err := j.Secrets.Get(ctx, j.target())
	if err != nil {
		return reading{}, "", err
	}
	r.data, r.now = have.Data, j.Now()
	return r, have.Version, nil
}

func (j Job) plan(r reading) (step, error) {
	if j.Kind == Preshared {
		return planPreshared(r, key.GeneratePreshared)
	}
	return planServer(r, j.Key, key.GeneratePrivate)
}

func (j Job) report(ctx context.Context, s step) {
	level := slog.LevelInfo
	if s.warn {
		level = slog.LevelWarn
	}
	attrs := append([]slog.Attr{slog.String("kind", string(j.Kind)), slog.String("reason", s.message)}, s.attrs...)
	if s.result == Rotated {
		j.Log.LogAttrs(ctx, level, "next key made", attrs...)
	} else {
		j.Log.LogAttrs(ctx, level, "nothing to rotate", attrs...)
	}
}

// publish writes down the run and, unless it failed, which server keys there are.
func (j Job) publish(ctx context.Context, run Run) error {
	if j.Publication.ConfigMap == "" {
		return nil
	}
	return publish(ctx, j.ConfigMaps, j.Publication.ConfigMap, func(have map[string][]byte) (map[string][]byte, error) {
		run.Time = j.Now().UTC().Truncate(time.Second)
		run.Message = published(run.Message)
		patch := map[string][]byte{}
		if j.Kind == Server && run.Result != Failed {
			r, _, err := j.read(ctx)
			if err != nil {
				return nil, err
			}
			l, err := answered(r.data, r.mounted, j.Key, r.now)
			if err != nil {
				return nil, fmt.Errorf("secret %s:\n%w", j.target(), err)
			}
			if patch, err = publication(l, r.now, r.overlap, j.Publication.Endpoints); err != nil {
				return nil, err
			}
		}
		var err error
		patch[rotationEntry], err = recorded(have[rotationEntry], j.Kind, j.Secret, run, j.PresharedSecrets)
		return patch, err
	})
}

// failureTimeout is for saying that there was no time.
const failureTimeout = 10 * time.Second

func (j Job) publishFailure(ctx context.Context, failure error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), failureTimeout)
	defer cancel()
	return j.publish(ctx, Run{Result: Failed, Message: failure.Error()})
}

// annotate has mounts renewed at once, where a key is there that they need.
func (j Job) annotate(ctx context.Context, s step) error {
	if j.AnnotatePods == "" || !s.pending {
		return nil
	}
	pods, err := j.Pods.List(ctx, j.AnnotatePods)
	if err != nil {
		return err
	}
	var errs []error
	for _, pod := range pods {
		errs = append(errs, j.Pods.Annotate(ctx, pod, map[string]string{ChangedAnnotation: stamp(j.Now())}))
	}
	if len(pods) > 0 {
		j.Log.InfoContext(ctx, "pods annotated, so that their mounts are renewed at once", "pods", pods)
	}
	return errors.Join(errs...)
}
