package clientconf

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
)

// Update is what a client has to change in its file when keys rotate.
type Update struct {
	// Known are the gateway's public keys that the file may have: the section of
	// one of them is the one to change.
	Known []key.Public
	// PublicKey and Endpoint take their place. Of an endpoint whose host is not the
	// gateway's own, only the port is changed. Zero leaves it alone.
	PublicKey key.Public
	Endpoint  spec.Endpoint
	// PresharedKey takes the place of the file's, and is added or removed where
	// only one of them is there; nil leaves it alone.
	PresharedKey *key.Preshared
}

// ErrNotOurs says that no section of a client's file is the gateway's.
var ErrNotOurs = errors.New("no [Peer] of the file has a public key of this gateway")

// ParseConfig returns the client's private key as it stands in its file. The
// error never quotes the file.
func ParseConfig(config string) (key.Private, error) {
	for _, l := range parseLines(config) {
		if l.section == "interface" && l.field == "privatekey" {
			k, err := key.ParsePrivate(l.value)
			if err != nil {
				return key.Private{}, fmt.Errorf("[Interface] PrivateKey: %w", err)
			}
			return k, nil
		}
	}
	return key.Private{}, errors.New("no PrivateKey in an [Interface] section: not a client's file")
}

// Reveal returns a client's file in the form of wg-quick(8) with the update made,
// and everything else, comments too, as it was. It holds the client's private key.
func (u Update) Reveal(config string) (string, error) {
	lines := parseLines(config)
	section := -1
	for _, l := range lines {
		if k, err := key.ParsePublic(l.value); l.section == "peer" && l.field == "publickey" && err == nil && slices.Contains(u.Known, k) {
			section = l.number
		}
	}
	if section < 0 {
		return "", ErrNotOurs
	}
	var out strings.Builder
	for _, l := range lines {
		text := l.text
		if l.number == section {
			switch l.field {
			case "publickey":
				text = l.with(u.PublicKey.String())
				if u.PresharedKey != nil && !u.PresharedKey.IsZero() {
					text += "\nPresharedKey = " + u.PresharedKey.Reveal()
				}
			case "endpoint":
				if e := u.endpoint(l.value); !e.IsZero() {
					text = l.with(e.String())
				}
			case "presharedkey":
				if u.PresharedKey != nil {
					continue // it stands behind the public key
				}
			}
		}
		out.WriteString(text + "\n")
	}
	return out.String(), nil
}

// endpoint keeps the host of one that the client reaches the gateway by.
func (u Update) endpoint(have string) spec.Endpoint {
	if e, err := spec.ParseEndpoint(have); err == nil && e.Host != u.Endpoint.Host && !u.Endpoint.IsZero() {
		e.Port = u.Endpoint.Port
		return e
	}
	return u.Endpoint
}

// line is one of a client's file. Names are in lower case: wg(8) reads any.
type line struct {
	text           string
	section, field string
	number         int // of the section
	value          string
}

func (l line) with(value string) string {
	name, _, _ := strings.Cut(l.text, "=")
	return strings.TrimRight(name, " \t") + " = " + value
}

func parseLines(config string) []line {
	var out []line
	section, number := "", 0
	for text := range strings.Lines(config) {
		text = strings.TrimRight(text, "\r\n")
		l := line{text: text, section: section, number: number}
		content, _, _ := strings.Cut(text, "#")
		content = strings.TrimSpace(content)
		if strings.HasPrefix(content, "[") && strings.HasSuffix(content, "]") {
			section, number = strings.ToLower(content[1:len(content)-1]), number+1
			l.section, l.number = section, number
		} else if name, value, found := strings.Cut(content, "="); found {
			l.field, l.value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		}
		out = append(out, l)
	}
	return out
}
