package fleet

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist asks of us.
type delegate struct{ *Fleet }

// NodeMeta implements [memberlist.Delegate].
func (d delegate) NodeMeta(int) []byte {
	d.mu.Lock()
	m := meta{Draining: d.draining}
	d.mu.Unlock()
	if l := d.options.Link; l != nil {
		m.LinkKey, m.LinkPort = l.PrivateKey.Public(), l.ListenPort
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil // a struct of plain fields has none
	}
	return b
}

// NotifyMsg implements [memberlist.Delegate].
func (d delegate) NotifyMsg(b []byte) { d.merge(b, false) }

// GetBroadcasts implements [memberlist.Delegate].
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements [memberlist.Delegate].
func (d delegate) LocalState(bool) []byte {
	now := time.Now()
	d.mu.Lock()
	sessions := d.replica.State()
	d.mu.Unlock()
	return encode(sessions, now)
}

// MergeRemoteState implements [memberlist.Delegate].
func (d delegate) MergeRemoteState(b []byte, _ bool) { d.merge(b, true) }

// merge takes sessions that a sibling tells of. What was news goes on to others:
// each replica tells three, and so all of them know after a few steps. That holds for
// what two sides of a partition tell each other, too.
func (f *Fleet) merge(b []byte, isAll bool) {
	now := time.Now()
	kind := kindOf(b)
	sessions, err := decodeAs(kind, b, now)
	if err != nil {
		f.refusedMessages.count(refusedMalformed)
		f.options.Log.Debug("message of a sibling refused", "error", err)
		return
	}
	f.do(func(time.Time) Effects {
		switch {
		case kind == wireOffer:
			return f.replica.Offered(sessions, now)
		case kind == wireRecall:
			return f.replica.Recalled(sessions, now)
		case isAll:
			return f.replica.Compared(sessions, now)
		}
		return f.replica.Heard(sessions, now)
	})
}

// recall tells each holder of what comes here instead.
func (f *Fleet) recall(sessions []Session) {
	for _, s := range sessions {
		f.mu.Lock()
		node := f.siblings[f.replica.members[s.Holder].Name].node
		f.mu.Unlock()
		if node == nil {
			continue
		}
		if err := f.list.SendBestEffort(node, encodeAs(wireRecall, []Session{s}, time.Now())); err != nil {
			f.options.Log.Debug("recall not sent, reminders will do", "replica", node.Name, "error", err)
		}
	}
}

// publish tells the siblings of sessions: at once, so that a former holder falls silent
// and whoever the peer goes to next knows it, and by gossip, which arrives in any case.
func (f *Fleet) publish(e Effects) {
	if f.queue == nil {
		return
	}
	for _, s := range e.Publish {
		f.queue.QueueBroadcast(&broadcast{s})
	}
	for _, s := range e.PassOn {
		f.queue.QueueBroadcast(&broadcast{s})
	}
	news := e.Publish
	if len(f.outbox) < cap(f.outbox)/2 { // else there is more important news
		news = append(news[:len(news):len(news)], e.Tell...)
	}
	if len(news) == 0 {
		return
	}
	select {
	case f.outbox <- news:
	default: // what was published goes by gossip, then
	}
}

// prune keeps gossip from piling up. memberlist takes none of it while there is nobody to
// tell, and whoever comes is told everything; and where it is more than packets carry, what
// was sent most often goes first, and is found again by comparing everything.
func (f *Fleet) prune() {
	most := gossipMost
	if f.replicas() == 1 {
		most = 0
	}
	if f.queue.NumQueued() > most {
		f.queue.Prune(most)
	}
}

// send tells all siblings at once.
func (f *Fleet) send(ctx context.Context) {
	for {
		var sessions []Session
		select {
		case <-ctx.Done():
			return
		case sessions = <-f.outbox:
		}
		// What else is waiting goes along.
		for more := true; more && len(sessions) < packetSize/wireSession/2; {
			select {
			case next := <-f.outbox:
				sessions = append(sessions[:len(sessions):len(sessions)], next...)
			default:
				more = false
			}
		}
		f.mu.Lock()
		var to []*memberlist.Node
		for _, s := range f.siblings {
			if s.state == Alive || s.state == Draining {
				to = append(to, s.node)
			}
		}
		f.mu.Unlock()
		for some := range slices.Chunk(sessions, packetSize/wireSession) {
			message := encode(some, time.Now())
			for _, n := range to {
				if err := f.list.SendBestEffort(n, message); err != nil {
					f.options.Log.Debug("message not sent, gossip will do", "replica", n.Name, "error", err)
				}
			}
		}
		if !pause(ctx, sendRest) {
			return
		}
	}
}

// broadcast is a session that goes by gossip.
type broadcast struct{ session Session }

// Invalidates implements [memberlist.Broadcast]. Names say it all.
func (b *broadcast) Invalidates(memberlist.Broadcast) bool { return false }

// Name implements [memberlist.NamedBroadcast]: a session takes its own place in the
// queue, and not that of a newer one of the peer's that was heard of before.
func (b *broadcast) Name() string {
	return string(binary.BigEndian.AppendUint32(b.session.Peer[:], b.session.Index))
}

// Message implements [memberlist.Broadcast]. It has its age when it is sent.
func (b *broadcast) Message() []byte { return encode([]Session{b.session}, time.Now()) }

// Finished implements [memberlist.Broadcast].
func (b *broadcast) Finished() {}
