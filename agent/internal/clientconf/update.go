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
	// Known are the gateway's public keys that the file may have. The sections of
	// theirs become one.
	Known []key.Public
	// PublicKey and Endpoint take their place. Of an endpoint whose host is not the
	// gateway's own, only the port is changed. Zero leaves it alone.
	PublicKey key.Public
	Endpoint  spec.Endpoint
	// PresharedKey takes the place of the file's. It is added where that has none,
	// and removed where it is zero; nil leaves the file's alone.
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
//
// Where the file has a section for each of two keys of the gateway, the newest
// key's gets what it lacks from the others, allowed IPs above all, and these go: two
// peers with one key would be one, that of the last section.
func (u Update) Reveal(config string) (string, error) {
	lines := parseLines(config)
	ours, stays := u.sections(lines)
	if len(ours) == 0 {
		return "", ErrNotOurs
	}
	added := u.added(lines, ours, stays)
	var out strings.Builder
	end := ends(lines)
	for i, l := range lines {
		if ours[l.number] && l.number != stays && i <= end[l.number] {
			continue
		}
		text, keep := l.text, true
		if l.number == stays {
			text, keep = u.changed(l)
		}
		if keep {
			out.WriteString(text + "\n")
		}
		if l.number == stays && l.field == "publickey" {
			out.WriteString(added)
			added = ""
		}
	}
	return out.String(), nil
}

// added are the lines that the section that stays lacks.
func (u Update) added(lines []line, ours map[int]bool, stays int) string {
	var added strings.Builder
	have := map[string]bool{} // fields of the section that stays
	for _, l := range lines {
		have[l.field] = have[l.field] || l.number == stays
	}
	if !have["presharedkey"] && u.PresharedKey != nil && !u.PresharedKey.IsZero() {
		added.WriteString("PresharedKey = " + u.PresharedKey.Reveal() + "\n")
		have["presharedkey"] = true
	}
	for _, l := range lines {
		if ours[l.number] && l.number != stays && (l.field == "allowedips" || l.field != "" && !have[l.field]) {
			if text, keep := u.changed(l); keep && !allowed(lines, stays, l) {
				added.WriteString(text + "\n")
				have[l.field] = true
			}
		}
	}
	return added.String()
}

// sections are those of the gateway, and the one of them that stays: the newest
// key's, or else the last.
func (u Update) sections(lines []line) (ours map[int]bool, stays int) {
	ours, newest := map[int]bool{}, false
	for _, l := range lines {
		if l.section != "peer" || l.field != "publickey" {
			continue
		}
		k, err := key.ParsePublic(l.value)
		if err != nil || k != u.PublicKey && !slices.Contains(u.Known, k) {
			continue
		}
		ours[l.number] = true
		if k == u.PublicKey || !newest {
			stays, newest = l.number, k == u.PublicKey
		}
	}
	return ours, stays
}

// changed is a line of the section that stays, and whether it does.
func (u Update) changed(l line) (text string, keep bool) {
	switch l.field {
	case "publickey":
		return l.with(u.PublicKey.String()), true
	case "endpoint":
		if e := u.endpoint(l.value); !e.IsZero() {
			return l.with(e.String()), true
		}
	case "presharedkey":
		switch {
		case u.PresharedKey == nil:
		case u.PresharedKey.IsZero():
			return "", false
		default:
			return l.with(u.PresharedKey.Reveal()), true
		}
	}
	return l.text, true
}

// allowed reports whether a section has all allowed IPs of a line already.
func allowed(lines []line, section int, of line) bool {
	if of.field != "allowedips" {
		return false
	}
	have := map[string]bool{}
	for _, l := range lines {
		if l.number == section && l.field == "allowedips" {
			for _, ip := range l.list() {
				have[ip] = true
			}
		}
	}
	return !slices.ContainsFunc(of.list(), func(ip string) bool { return !have[ip] })
}

// ends are the indices of the last lines of sections, by their numbers. What
// follows without content is a comment on the next one.
func ends(lines []line) map[int]int {
	out := map[int]int{}
	for i, l := range lines {
		if l.field != "" || l.header {
			out[l.number] = i
		}
	}
	return out
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
	header         bool
	value          string
}

// with is the line with another value. A comment behind it stays.
func (l line) with(value string) string {
	content, comment, commented := strings.Cut(l.text, "#")
	name, _, _ := strings.Cut(content, "=")
	if commented {
		trimmed := strings.TrimRight(content, " \t")
		comment = content[len(trimmed):] + "#" + comment
	}
	return strings.TrimRight(name, " \t") + " = " + value + comment
}

// list are the values of one that has several.
func (l line) list() []string {
	return strings.FieldsFunc(l.value, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
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
			l.section, l.number, l.header = section, number, true
		} else if name, value, found := strings.Cut(content, "="); found {
			l.field, l.value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		}
		out = append(out, l)
	}
	return out
}
