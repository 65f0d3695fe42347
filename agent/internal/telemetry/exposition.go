package telemetry

import (
	"cmp"
	"encoding/base64"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// contentType is the Prometheus text exposition format, which every scraper
// reads (https://prometheus.io/docs/instrumenting/exposition_formats/).
const contentType = "text/plain; version=0.0.4; charset=utf-8"

// flushAt is the size in bytes from which buffered text goes out.
const flushAt = 32 << 10

// exposition writes the series of which there are as many as peers. It stands
// beside the client library and not on it because of 10,000 peers: gathering
// their 50,000 series there takes 370 ms and 37 MB of garbage, against 16 ms
// and 1.2 MB here (BenchmarkMetricsByClientLibrary, BenchmarkMetrics), while
// reading them from the device takes about 60 ms.
type exposition struct {
	out   io.Writer
	buf   []byte
	err   error // of the first write that failed; nothing is written after it
	table []metric
}

// dump is what a scrape read from the device. The peers lie in two pieces of
// memory and in no map: with 10,000 of them, that is a quarter of the garbage, and
// a scrape waits for the collector where it makes much.
type dump struct {
	devices  []string              // read so far
	names    map[key.Public]string // configured
	rows     []row
	prefixes []netip.Prefix
	known    int // rows that are configured
	took     time.Duration
	err      error
}

// row is what the writer needs of a peer.
type row struct {
	public              key.Public
	device              int // of the dump's devices
	name                string
	first, last         int // prefixes[first:last] of the dump
	received, sent, met int64
}

func newDump(names map[key.Public]string) *dump {
	return &dump{
		names: names,
		rows:  make([]row, 0, len(names)), prefixes: make([]netip.Prefix, 0, len(names)),
	}
}

// add takes a peer of the last device.
func (d *dump) add(p *state.ObservedPeer) {
	name, known := d.names[p.PublicKey]
	if known {
		d.known++
	}
	first := len(d.prefixes)
	d.prefixes = append(d.prefixes, p.AllowedIPs...)
	r := row{
		public: p.PublicKey, device: len(d.devices) - 1, name: name, first: first, last: len(d.prefixes),
		received: p.ReceiveBytes, sent: p.TransmitBytes,
	}
	if !p.LastHandshake.IsZero() {
		r.met = p.LastHandshake.Unix()
	}
	d.rows = append(d.rows, r)
}

func newExposition(out io.Writer) *exposition {
	return &exposition{out: out, buf: make([]byte, 0, flushAt+4<<10), table: catalogue()}
}

// write puts the dump out, each family sorted by public key, and returns the
// error of the writer below.
func (e *exposition) write(d *dump) error {
	e.head(dumpOK)
	e.plain(dumpOK, "", strconv.Itoa(int(number(d.err == nil))))
	e.head(dumpDuration)
	e.plain(dumpDuration, "", strconv.FormatFloat(d.took.Seconds(), 'g', -1, 64))
	if d.err == nil {
		e.drift(d)
		slices.SortFunc(d.rows, func(a, b row) int { return cmp.Or(a.device-b.device, a.public.Compare(b.public)) })
		e.rows(d)
	}
	e.flush()
	return e.err
}

// drift compares the device's peers with the configured ones. A reload between
// the two readings shows up for one scrape.
func (e *exposition) drift(d *dump) {
	e.head(driftedPeers)
	e.plain(driftedPeers, `{drift="missing"}`, strconv.Itoa(len(d.devices)*len(d.names)-d.known))
	e.plain(driftedPeers, `{drift="unexpected"}`, strconv.Itoa(len(d.rows)-d.known))
}

func (e *exposition) rows(d *dump) {
	rs := d.rows
	inDevices := make([]string, len(d.devices))
	for i, name := range d.devices {
		inDevices[i] = `device="` + string(appendEscaped(nil, name)) + `"`
	}

	e.head(peerInfo)
	for i := range rs {
		e.buf = append(e.buf, e.table[peerInfo].name...)
		e.buf = append(e.buf, '{')
		e.buf = append(e.buf, inDevices[rs[i].device]...)
		e.buf = append(e.buf, `,name="`...)
		e.buf = appendEscaped(e.buf, rs[i].name)
		e.buf = append(e.buf, '"')
		e.publicKeyAndValue(&rs[i], 1)
	}
	e.head(peerAllowedIPs)
	for i := range rs {
		for _, prefix := range d.prefixes[rs[i].first:rs[i].last] {
			e.buf = append(e.buf, e.table[peerAllowedIPs].name...)
			e.buf = append(e.buf, `{allowed_ips="`...)
			e.buf = prefix.AppendTo(e.buf)
			e.buf = append(e.buf, `",`...)
			e.buf = append(e.buf, inDevices[rs[i].device]...)
			e.publicKeyAndValue(&rs[i], 1)
		}
	}
	for _, family := range []struct {
		id    int
		value func(*row) int64
	}{
		{peerReceived, func(r *row) int64 { return r.received }},
		{peerTransmitted, func(r *row) int64 { return r.sent }},
		{peerHandshake, func(r *row) int64 { return r.met }},
	} {
		e.head(family.id)
		start := e.table[family.id].name + "{"
		for i := range rs {
			e.buf = append(e.buf, start...)
			e.buf = append(e.buf, inDevices[rs[i].device]...)
			e.publicKeyAndValue(&rs[i], family.value(&rs[i]))
		}
	}
}

// publicKeyAndValue ends a line that has labels already.
func (e *exposition) publicKeyAndValue(r *row, value int64) {
	e.buf = append(e.buf, `,public_key="`...)
	e.buf = base64.StdEncoding.AppendEncode(e.buf, r.public[:])
	e.buf = append(e.buf, `"} `...)
	e.buf = strconv.AppendInt(e.buf, value, 10)
	e.buf = append(e.buf, '\n')
	if len(e.buf) >= flushAt {
		e.flush()
	}
}

// head writes HELP and TYPE. The catalogue's texts need no escaping; a test
// holds them to it.
func (e *exposition) head(id int) {
	m := e.table[id]
	e.buf = append(e.buf, "# HELP "+m.name+" "+m.help+"\n# TYPE "+m.name+" "+m.kind+"\n"...)
}

func (e *exposition) plain(id int, labels, value string) {
	e.buf = append(e.buf, e.table[id].name+labels+" "+value+"\n"...)
}

func (e *exposition) flush() {
	if e.err == nil {
		_, e.err = e.out.Write(e.buf)
	}
	e.buf = e.buf[:0]
}

// appendEscaped appends a label's value: backslash, double quote and line feed
// are escaped, what is not UTF-8 is replaced.
func appendEscaped(buf []byte, value string) []byte {
	for _, r := range value {
		switch r {
		case '\\':
			buf = append(buf, `\\`...)
		case '"':
			buf = append(buf, `\"`...)
		case '\n':
			buf = append(buf, `\n`...)
		default:
			buf = utf8.AppendRune(buf, r)
		}
	}
	return buf
}
