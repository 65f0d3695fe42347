package firewall

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// sendBuffer holds a whole transaction, which is one sendmsg(2): 10,000
	// peers of both families with grants of their own make about 4 MiB. It is
	// a limit, not an allocation.
	sendBuffer = 64 << 20
	// receiveBuffer holds the acknowledgements of all its messages, which the
	// kernel queues before we read the first.
	receiveBuffer = 8 << 20
	// answerWithin is when to give up on the kernel. It answers at once, unless
	// it ran out of memory for the answer.
	answerWithin = 30 * time.Second
	// surveys is how often to start over when tables change while we read.
	surveys = 10
)

// socketOptions prepares every socket. Each operation opens one of its own, so
// that no late answer is taken for that of the next.
func socketOptions() nftables.ConnOption {
	return nftables.WithSockOptions(prepare)
}

func prepare(c *netlink.Conn) error {
	// With NET_ADMIN of the initial user namespace (of the socket's own since
	// Linux 5.17) these go past net.core.*mem_max, else up to it.
	if err := c.SetWriteBuffer(sendBuffer); err != nil {
		return fmt.Errorf("netlink send buffer: %w", err)
	}
	if err := c.SetReadBuffer(receiveBuffer); err != nil {
		return fmt.Errorf("netlink receive buffer: %w", err)
	}
	return c.SetDeadline(time.Now().Add(answerWithin))
}

// commit sends what fill puts into the connection as one transaction.
func commit(fill func(*nftables.Conn) error) error {
	c, err := nftables.New(socketOptions())
	if err != nil {
		return err
	}
	if err := fill(c); err != nil {
		return err
	}
	err = c.Flush()
	if errors.Is(err, unix.EMSGSIZE) {
		return fmt.Errorf("%w: too many elements for the socket's buffer; raise net.core.wmem_max on the node", err)
	}
	return err
}

// query sends one request to nf_tables and returns the answers.
func query(c *netlink.Conn, message uint16, flags netlink.HeaderFlags, attributes ...netlink.Attribute) ([]netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return nil, err
	}
	return c.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message),
			Flags: netlink.Request | flags,
		},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

// nfgenmsg is the length of the header before the attributes; its last field is
// the generation, which differs from dump to dump.
const nfgenmsg = 4

// generation returns the count of changes to the namespace's ruleset.
func generation() (uint32, error) {
	c, err := dial()
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	return generationOf(c)
}

func dial() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := prepare(c); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func generationOf(c *netlink.Conn) (uint32, error) {
	messages, err := query(c, unix.NFT_MSG_GETGEN, 0)
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		id, err := attribute(m, unix.NFTA_GEN_ID)
		if err != nil {
			return 0, err
		}
		if len(id) == 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errors.New("the kernel gave no generation")
}

// survey returns a digest of our table's chains and rules, their handles
// included, and the generation at which it was true.
func survey() (seen uint32, digest [sha256.Size]byte, err error) {
	c, err := dial()
	if err != nil {
		return 0, digest, err
	}
	defer func() { _ = c.Close() }()
	for range surveys {
		before, err := generationOf(c)
		if err != nil {
			return 0, digest, err
		}
		digest, err = digestOf(c, Table)
		if err != nil {
			return 0, digest, err
		}
		after, err := generationOf(c)
		if err != nil {
			return 0, digest, err
		}
		if before == after {
			return after, digest, nil
		}
	}
	return 0, digest, fmt.Errorf("the ruleset changed during each of %d readings", surveys)
}

func digestOf(c *netlink.Conn, table string) (digest [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, d := range []dump{chainDump(), ruleDump()} {
		messages, err := d.of(c, table)
		if err != nil {
			return digest, err
		}
		for _, m := range messages {
			_, _ = h.Write(m.Data[nfgenmsg:]) // a hash takes everything
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// contents returns what our table holds; nothing where there is none.
func contents() (inventory, error) {
	c, err := dial()
	if err != nil {
		return inventory{}, err
	}
	defer func() { _ = c.Close() }()
	var out inventory
	if out.chains, err = chainDump().names(c, Table); err != nil {
		return inventory{}, err
	}
	if out.sets, err = setDump().names(c, Table); err != nil {
		return inventory{}, err
	}
	return out, nil
}

// dump is a request for all objects of a kind.
type dump struct {
	message uint16
	table   uint16 // the attribute with the name of an object's table
	name    uint16 // the attribute with its own
}

func chainDump() dump {
	return dump{unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME}
}

func ruleDump() dump { return dump{message: unix.NFT_MSG_GETRULE, table: unix.NFTA_RULE_TABLE} }

func setDump() dump {
	return dump{unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME}
}

// of returns the objects of one table, which may be missing.
func (d dump) of(c *netlink.Conn, table string) ([]netlink.Message, error) {
	// The kernel looks at the attribute for some kinds, and gives the objects of
	// all tables for others.
	messages, err := query(c, d.message, netlink.Dump, netlink.Attribute{Type: d.table, Data: []byte(table + "\x00")})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []netlink.Message
	for _, m := range messages {
		name, err := attribute(m, d.table)
		if err != nil {
			return nil, err
		}
		if string(name) == table+"\x00" {
			out = append(out, m)
		}
	}
	return out, nil
}

func (d dump) names(c *netlink.Conn, table string) ([]string, error) {
	messages, err := d.of(c, table)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range messages {
		name, err := attribute(m, d.name)
		if err != nil {
			return nil, err
		}
		out = append(out, strings.TrimSuffix(string(name), "\x00"))
	}
	return out, nil
}

// attribute returns the bytes of a message's attribute, nil where it has none.
func attribute(m netlink.Message, kind uint16) ([]byte, error) {
	if len(m.Data) < nfgenmsg {
		return nil, fmt.Errorf("netlink message of %d bytes", len(m.Data))
	}
	attributes, err := netlink.UnmarshalAttributes(m.Data[nfgenmsg:])
	if err != nil {
		return nil, err
	}
	for _, a := range attributes {
		if a.Type == kind {
			return a.Data, nil
		}
	}
	return nil, nil
}
