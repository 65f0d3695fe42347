// Package replicas asks a gateway's replicas how many peers are connected to each.
// Every replica answers for all of them (GET /fleet), so that one that cannot be
// asked is still known by what its siblings say.
package replicas

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// path is where a replica answers.
	path = "/fleet"
	// bodyLimit is far above what a fleet of hundreds says.
	bodyLimit = 1 << 20
	// stateDead is what siblings call a replica that has gone without a word: what
	// it held last says nothing any more.
	stateDead = "dead"
)

// Replica is a Pod of the gateway.
type Replica struct {
	// Name of the Pod, which is the replica's name in its fleet.
	Name string
	// Address of its HTTP port; the zero value where the Pod has none yet.
	Address netip.AddrPort
}

// Answer is what a fleet said.
type Answer struct {
	// Connected is the number of connected peers by Pod. A Pod that nobody knows
	// anything about is not in it: that is not the same as none.
	Connected map[string]int64
	// Failed says why a replica gave no answer itself, by Pod.
	Failed map[string]error
}

// Options bound the asking.
type Options struct {
	// Timeout for each replica.
	Timeout time.Duration
	// Parallel is how many are asked at a time.
	Parallel int
}

// Asker asks replicas.
type Asker struct {
	options Options
	client  *http.Client
}

// New makes an Asker.
func New(o Options) *Asker {
	return &Asker{options: o, client: &http.Client{
		Transport: &http.Transport{
			// A Pod is asked now and then: by the next time its connection is stale.
			DisableKeepAlives: true,
			// Never by a proxy that the environment names.
			Proxy: nil,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// fleet is the answer of a replica, as far as it matters here.
type fleet struct {
	Replica string   `json:"replica"`
	Members []member `json:"members"`
}

type member struct {
	Name           string `json:"name"`
	State          string `json:"state"`
	ConnectedPeers *int64 `json:"connectedPeers"`
}

// Ask asks all of them. A replica's word about itself counts; of one that gives
// none, the highest figure that a sibling has for it: rather a Pod too many than
// one too few.
func (a *Asker) Ask(ctx context.Context, all []Replica) Answer {
	answers, errs := make([]fleet, len(all)), make([]error, len(all))
	slots := make(chan struct{}, max(1, a.options.Parallel))
	var asking sync.WaitGroup
	for i, r := range all {
		asking.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				answers[i], errs[i] = a.askOne(ctx, r)
			case <-ctx.Done():
				errs[i] = fmt.Errorf("not asked in time: %w", ctx.Err())
			}
		})
	}
	asking.Wait()

	out := Answer{Connected: map[string]int64{}, Failed: map[string]error{}}
	heard := map[string]int64{}
	for i, r := range all {
		if errs[i] != nil {
			out.Failed[r.Name] = errs[i]
			continue
		}
		for _, m := range answers[i].Members {
			if m.Name == r.Name {
				out.Connected[r.Name] = *m.ConnectedPeers
			} else if m.State != stateDead {
				heard[m.Name] = max(heard[m.Name], *m.ConnectedPeers)
			}
		}
	}
	for _, r := range all {
		_, itself := out.Connected[r.Name]
		if n, ok := heard[r.Name]; ok && !itself {
			out.Connected[r.Name] = n
		}
	}
	return out
}

// askOne asks one replica. What it returns is complete: the replica itself is among
// the members, and every member has a figure.
func (a *Asker) askOne(ctx context.Context, r Replica) (fleet, error) {
	if !r.Address.IsValid() {
		return fleet{}, errors.New("the Pod has no address yet")
	}
	ctx, cancel := context.WithTimeout(ctx, a.options.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Address.String()+path, nil)
	if err != nil {
		return fleet{}, err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return fleet{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fleet{}, fmt.Errorf("GET %s: status %s", path, response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, bodyLimit+1))
	if err != nil {
		return fleet{}, fmt.Errorf("GET %s: %w", path, err)
	}
	if len(body) > bodyLimit {
		return fleet{}, fmt.Errorf("GET %s: the answer is longer than %d bytes", path, bodyLimit)
	}
	var f fleet
	if err := json.Unmarshal(body, &f); err != nil {
		return fleet{}, fmt.Errorf("GET %s: %w", path, err)
	}
	return f, f.check(r.Name)
}

// check refuses an answer that cannot be counted with.
func (f fleet) check(name string) error {
	// The address may be that of another Pod by now.
	if f.Replica != name {
		return fmt.Errorf("GET %s: the answer is of the replica %q", path, f.Replica)
	}
	itself := false
	for _, m := range f.Members {
		if m.ConnectedPeers == nil || *m.ConnectedPeers < 0 {
			return fmt.Errorf("GET %s: no connectedPeers of the member %q", path, m.Name)
		}
		itself = itself || m.Name == name
	}
	if !itself {
		return fmt.Errorf("GET %s: the replica is not among its own members", path)
	}
	return nil
}
