package device

import (
	"net"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// observe reads a tunnel. A missing link is no error. The error is [ErrLinkTaken]
// where the link was replaced by one of another type.
func (d *device) observe() (o state.ObservedTunnel, err error) {
	link, err := findLink(d.name, d.backend.kind())
	if err != nil || link == nil {
		return o, err
	}
	o.LinkExists = true
	o.LinkUp = link.Attrs().Flags&net.FlagUp != 0
	o.Link = state.Link{Name: d.name, MTU: link.Attrs().MTU}
	if o.Link.Addresses, err = addresses(link); err != nil {
		return o, err
	}
	if o.Link.Routes, err = routes(link); err != nil {
		return o, err
	}
	if d.answers {
		if o.Link.Answers, err = answers(link); err != nil {
			return o, err
		}
		if o.Link.AnswersFor, err = answersFor(); err != nil {
			return o, err
		}
	}
	o.Device, err = d.read()
	return o, err
}
