package device

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
)

// A sibling passes packets on to us with the address of its Pod as their source. What
// a peer answers has to go back by the way that they came, between replicas; but what
// this Pod itself sends to that address, WireGuard's own packets before all, has to
// leave by the uplink. What tells them apart is where they come from: routing rules
// send what comes in by a tunnel to a table in which the siblings lie behind the
// interlink.

const (
	// answersTable is the number of that table. Numbers above 255 belong to nobody.
	answersTable = 51840
	// answersPriority puts the rules before that of the main table (32766).
	answersPriority = 5184
)

// answers lists the routes of that table through the link, sorted.
func answers(link netlink.Link) ([]netip.Prefix, error) { return routesIn(answersTable, link) }

// answersFor lists the devices that have their rules, sorted.
func answersFor() ([]string, error) {
	byDevice := map[string]int{}
	for _, family := range families() {
		list, err := rulesOf(family)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			byDevice[r.IifName]++
		}
	}
	var out []string
	for name, n := range byDevice {
		if n == len(families()) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// families are those that have routing rules.
func families() []int {
	if _, err := netlink.RuleList(netlink.FAMILY_V6); err != nil {
		return []int{netlink.FAMILY_V4}
	}
	return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
}

// rulesOf lists our rules.
func rulesOf(family int) ([]netlink.Rule, error) {
	list, err := whole(func() ([]netlink.Rule, error) {
		return netlink.RuleListFiltered(family, &netlink.Rule{Table: answersTable}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routing rules: %w", err)
	}
	return slices.DeleteFunc(list, func(r netlink.Rule) bool { return r.Priority != answersPriority || r.IifName == "" }), nil
}

func rule(family int, device string) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.IifName, r.Table, r.Priority = family, device, answersTable, answersPriority
	return r
}

// addAnswers makes the routes, and then the rules that lead to them.
func (d *device) addAnswers(p plan.Link) error {
	if len(p.AddAnswers)+len(p.AddAnswersFor) == 0 {
		return nil
	}
	return d.onLink(func(link netlink.Link) error {
		var errs []error
		for _, a := range p.AddAnswers {
			r := route(link, a)
			r.Table = answersTable
			if err := netlink.RouteReplace(r); err != nil {
				errs = append(errs, fmt.Errorf("adding route of answers to %s: %w", a, err))
			}
		}
		for _, name := range p.AddAnswersFor {
			for _, family := range families() {
				if err := netlink.RuleAdd(rule(family, name)); err != nil && !errors.Is(err, unix.EEXIST) {
					errs = append(errs, fmt.Errorf("adding routing rule for what comes in by %s: %w", name, err))
				}
			}
		}
		return errors.Join(errs...)
	})
}

// removeAnswers does nothing where there are none.
func (d *device) removeAnswers(p plan.Link) error {
	if len(p.RemoveAnswers)+len(p.RemoveAnswersFor) == 0 {
		return nil
	}
	return d.onLink(func(link netlink.Link) error {
		var errs []error
		for _, name := range p.RemoveAnswersFor {
			for _, family := range families() {
				errs = append(errs, removeRule(rule(family, name)))
			}
		}
		for _, a := range p.RemoveAnswers {
			r := route(link, a)
			r.Table = answersTable
			if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("removing route of answers to %s: %w", a, err))
			}
		}
		return errors.Join(errs...)
	})
}

// forget removes the rules where they are this device's.
func (d *device) forget() error {
	if !d.answers {
		return nil
	}
	return removeRules()
}

// removeRules removes all of our rules; the routes go with their link.
func removeRules() error {
	var errs []error
	for _, family := range families() {
		list, err := rulesOf(family)
		errs = append(errs, err)
		for _, r := range list {
			errs = append(errs, removeRule(rule(family, r.IifName)))
		}
	}
	return errors.Join(errs...)
}

func removeRule(r *netlink.Rule) error {
	if err := netlink.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing routing rule for what comes in by %s: %w", r.IifName, err)
	}
	return nil
}
