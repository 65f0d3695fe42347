package spec

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
)

// serverKeys reads key/: the key by its plain name, and those that come in force
// at a time. Whatever else a Secret may hold is not ours to judge.
func (l *loader) serverKeys() (keys []ServerKey, warnings Faults) {
	plain, ok := l.files[PrivateKeyFile]
	if !ok {
		l.faults = append(l.faults, Fault{File: PrivateKeyFile, Problem: "missing", Fix: "mount the Secret with the key privateKey at key/"})
	}
	first := ServerKey{Slot: key.Blue}
	if ok {
		first.Key = l.privateKey(PrivateKeyFile, plain)
	}
	names := map[time.Time]string{}
	holders := map[key.Private]string{}
	for _, file := range sortedBelow(l.files, KeyDir) {
		slot, from, dated := key.ParseServerEntry(strings.TrimPrefix(file, KeyDir))
		if !dated {
			continue
		}
		k := l.privateKey(file, l.files[file])
		switch other, twice := holders[k]; {
		case k.IsZero():
			continue
		case twice:
			l.faults = append(l.faults, Fault{File: file, Problem: "the same key as " + other, Fix: "remove one of them: a key comes in force once"})
			continue
		case names[from] != "":
			l.faults = append(l.faults, Fault{File: file, Problem: "comes in force at the same time as " + names[from], Fix: "remove one of them"})
			continue
		}
		holders[k], names[from] = file, file
		keys = append(keys, ServerKey{Key: k, Slot: slot, From: from})
	}
	// By its plain name a key that has a time too is there for others to find.
	if _, copied := holders[first.Key]; !copied && !first.Key.IsZero() {
		keys = append(keys, first)
	}
	slices.SortFunc(keys, func(a, b ServerKey) int { return a.From.Compare(b.From) })
	for i := range keys {
		if i > 0 && keys[i].Slot == keys[i-1].Slot {
			warnings = append(warnings, Fault{
				File: names[keys[i].From], Problem: "in the slot of the key before it, whose clients are cut off when it comes in force",
				Fix: "name it " + key.ServerEntry(keys[i].Slot.Other(), keys[i].From),
			})
		}
	}
	return keys, warnings
}

// privateKey parses a file; the zero key stands for a fault.
func (l *loader) privateKey(file string, content []byte) key.Private {
	k, err := key.ParsePrivate(string(content))
	if err == nil && k.IsZero() {
		err = fmt.Errorf("32 zero bytes")
	}
	if err != nil {
		l.faults = append(l.faults, Fault{File: file, Problem: err.Error(), Fix: "store the output of 'wg genkey'"})
	}
	return k
}

// presharedKeys reads psk/ into the peers and returns warnings about files
// that name no peer: a peer may be removed before its key is.
func (l *loader) presharedKeys(peers []Peer) Faults {
	byName := make(map[string]*Peer, len(peers))
	for i := range peers {
		byName[peers[i].Name] = &peers[i]
	}
	var warnings Faults
	from := map[string]string{} // peer, or peer and time → file
	for _, file := range sortedBelow(l.files, PresharedDir) {
		base := path.Base(file)
		name, since := key.ParsePresharedEntry(base)
		k, err := key.ParsePreshared(string(l.files[file]))
		if err == nil && k.IsZero() {
			err = fmt.Errorf("32 zero bytes, which WireGuard takes for 'no key'")
		}
		p, known := byName[name]
		switch {
		case err != nil:
			l.faults = append(l.faults, Fault{File: file, Problem: err.Error(), Fix: "store the output of 'wg genpsk'"})
		case !known:
			warnings = append(warnings, Fault{File: file, Problem: "names no peer", Fix: "remove it, or name it like a peer"})
		case from[base] != "":
			l.faults = append(l.faults, Fault{File: file, Problem: "peer " + name + " has a pre-shared key in " + from[base] + " already", Fix: "keep one"})
		case !since.IsZero():
			from[base] = file
			p.Scheduled = append(p.Scheduled, ScheduledKey{Key: k, From: since})
		case !p.PresharedKey.IsZero():
			l.faults = append(l.faults, Fault{File: file, Problem: "peer " + name + " has a presharedKey in " + p.source.file + " already", Fix: "keep one"})
		default:
			p.PresharedKey = k
			from[base] = file
		}
	}
	for i := range peers {
		slices.SortFunc(peers[i].Scheduled, func(a, b ScheduledKey) int { return a.From.Compare(b.From) })
	}
	return warnings
}

// RotationResult is how a rotation went, as the job that tried it wrote down.
type RotationResult struct {
	Time time.Time `json:"time"`
	// Result is rotated, unchanged or [RotationFailed].
	Result  string `json:"result"`
	Message string `json:"message"`
}

// RotationFailed is the result of a rotation that did not do what it should have.
const RotationFailed = "failed"

// rotations reads what the rotation's jobs say of themselves, by the kind of key.
// It is for people to see and nothing depends on it: what cannot be read is left
// out, with a warning.
func (l *loader) rotations() (map[string]RotationResult, Faults) {
	content, ok := l.files[RotationFile]
	if !ok {
		return nil, nil
	}
	var results map[string]RotationResult
	if err := json.Unmarshal(content, &results); err != nil {
		return nil, Faults{{File: RotationFile, Problem: "not what a rotation's job writes", Fix: "remove it; the next job writes it anew"}}
	}
	return results, nil
}
