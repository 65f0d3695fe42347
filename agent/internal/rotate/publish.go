package rotate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// Entries of the ConfigMap that says which keys there are, for clients and for
// people. Public keys are no secret.
const (
	identitiesEntry = "identities.json"
	publicKeyEntry  = "publicKey"
	endpointEntry   = "endpoint"
	fromEntry       = "from"
	rotationEntry   = "rotation.json"
)

// Endpoints are where clients reach the slots of a gateway, host:port; empty
// where nobody knows.
type Endpoints struct{ Blue, Green string }

func (e Endpoints) of(s key.Slot) string {
	if s == key.Green {
		return e.Green
	}
	return e.Blue
}

// Identity is a server key that the gateway answers to.
type Identity struct {
	PublicKey key.Public `json:"publicKey"`
	Slot      key.Slot   `json:"slot"`
	Endpoint  string     `json:"endpoint,omitempty"`
	// From is when it comes in force; zero: since ever.
	From time.Time `json:"from,omitzero"`
	// Retires is when it is answered no more; zero where no other takes over.
	Retires time.Time `json:"retires,omitzero"`
}

// identities are those of keys that are not retired, oldest first.
func identities(l *line[key.Private], now time.Time, overlap time.Duration, at Endpoints) []Identity {
	out := []Identity{} // a list in JSON, not null
	for i, d := range l.keys {
		if l.retired(i, now, overlap) {
			continue
		}
		out = append(out, Identity{
			PublicKey: d.key.Public(), Slot: d.slot, Endpoint: at.of(d.slot),
			From: d.from, Retires: l.retires(i, overlap),
		})
	}
	return out
}

// publication is the merge patch of the ConfigMap's data: all identities, and the
// newest one by itself, with the time from which it counts. It is not the one in
// force: that changes by the clock, and nobody writes the ConfigMap then. The newest
// one stays the newest until the next rotation, which writes it, and the gateway
// answers to it as soon as its mounts are renewed.
func publication(l *line[key.Private], now time.Time, overlap time.Duration, at Endpoints) (map[string][]byte, error) {
	list, err := json.Marshal(identities(l, now, overlap, at))
	if err != nil {
		return nil, err
	}
	newest := l.newest()
	patch := map[string][]byte{
		identitiesEntry: list, publicKeyEntry: []byte(newest.key.Public().String()), endpointEntry: nil, fromEntry: nil,
	}
	if endpoint := at.of(newest.slot); endpoint != "" {
		patch[endpointEntry] = []byte(endpoint)
	}
	if !newest.from.IsZero() {
		patch[fromEntry] = []byte(stamp(newest.from))
	}
	return patch, nil
}

// Run is what came of a run of 'keys rotate'.
type Run struct {
	Time    time.Time `json:"time"`
	Result  Result    `json:"result"`
	Message string    `json:"message"`
}

// Record is the last run for a kind of key. Where a kind has several Secrets, it
// is that of the last one that failed, if the last run of any did: a failure is
// not to be hidden by the job that runs beside it.
type Record struct {
	Run
	// Secrets has the last run of each.
	Secrets map[string]Run `json:"secrets,omitempty"`
}

// recorded is rotation.json with one run more. What cannot be read is replaced: the
// file is for showing, and nothing follows from it.
//
// Rotated are the Secrets of pre-shared keys that are rotated, nil where nobody
// knows. What is said of others goes: no run would ever take their failure back.
func recorded(before []byte, kind Kind, secret string, run Run, rotated []string) ([]byte, error) {
	all := map[Kind]Record{}
	if json.Unmarshal(before, &all) != nil || all == nil {
		all = map[Kind]Record{}
	}
	psk := all[Preshared].Secrets
	if kind == Preshared {
		if psk == nil {
			psk = map[string]Run{}
		}
		psk[secret] = run
	} else {
		all[kind] = Record{Run: run}
	}
	if rotated != nil {
		maps.DeleteFunc(psk, func(name string, _ Run) bool {
			return !slices.Contains(rotated, name) && (kind != Preshared || name != secret)
		})
	}
	switch {
	case len(psk) > 0:
		all[Preshared] = Record{Run: worst(psk), Secrets: psk}
	case rotated != nil:
		delete(all, Preshared)
	}
	return json.Marshal(all)
}

// worst is the newest of those that failed, or the newest of all.
func worst(runs map[string]Run) Run {
	var out Run
	for _, secret := range slices.Sorted(maps.Keys(runs)) {
		run := runs[secret]
		if rank := cmp.Or(boolCompare(run.Result == Failed, out.Result == Failed), run.Time.Compare(out.Time)); rank > 0 {
			out = run
		}
	}
	return out
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

// messageLen bounds what is published, in bytes.
const messageLen = 1024

// published is a text on one line, without what looks like a key, and not too
// long.
func published(text string) string {
	text = strings.ToValidUTF8(strings.NewReplacer(":\n", ": ", "\n", "; ").Replace(show(text)), "")
	if len(text) > messageLen {
		text = strings.ToValidUTF8(text[:messageLen], "") + "…"
	}
	return text
}

// publishAttempts are more than attempts, since there may be many jobs, one for each
// Secret, that start at one time and share the ConfigMap.
const publishAttempts = 30

// publish merges into the ConfigMap what patch makes of its data. What else patch
// goes by it has to read itself, then and not before: of two jobs at once the last
// one to write has then seen what the other one did.
func publish(ctx context.Context, configMaps Store, name string, patch func(have map[string][]byte) (map[string][]byte, error)) error {
	for range publishAttempts {
		have, err := configMaps.Get(ctx, name)
		if err != nil {
			return err
		}
		data, err := patch(have.Data)
		if err != nil {
			return err
		}
		err = configMaps.Merge(ctx, name, have.Version, data)
		if err == nil || !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return busy("configmap", name, publishAttempts)
}

// Publication is where to say which server keys there are.
type Publication struct {
	// ConfigMap to write to; empty is off.
	ConfigMap string
	Endpoints Endpoints
	// Overlap is how long a key is answered after the next one came in force.
	Overlap time.Duration
}

// PublishServer writes to the ConfigMap which server keys the Secret holds, and
// leaves what it says of rotations alone. Secret and name are those of [Init].
func PublishServer(ctx context.Context, secrets, configMaps Store, secret, name string, now time.Time, p Publication) error {
	return publish(ctx, configMaps, p.ConfigMap, func(map[string][]byte) (map[string][]byte, error) {
		have, err := secrets.Get(ctx, secret)
		if err != nil {
			return nil, err
		}
		l, err := answered(have.Data, nil, name, now)
		if err != nil {
			return nil, fmt.Errorf("secret %s:\n%w", secret, err)
		}
		return publication(l, now, p.Overlap, p.Endpoints)
	})
}
