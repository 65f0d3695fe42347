package podrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ProbeKind is one of the probes that a container can have.
type ProbeKind string

// The probes.
const (
	Startup   ProbeKind = "startup"
	Readiness ProbeKind = "readiness"
	Liveness  ProbeKind = "liveness"
)

// probeEvery is how often [Pod.WaitReady] asks.
const probeEvery = 20 * time.Millisecond

// errStopped says that the container ended while a probe was waited for.
var errStopped = errors.New("the container has ended")

// Probe runs a probe of the container's specification once, to the Pod's address
// from inside its namespace, with the probe's timeout. It returns nil for
// success, and where the container has no such probe; otherwise an error with
// what was answered.
func (c *Container) Probe(ctx context.Context, kind ProbeKind) error {
	probe := map[ProbeKind]*corev1.Probe{
		Startup: c.spec.StartupProbe, Readiness: c.spec.ReadinessProbe, Liveness: c.spec.LivenessProbe,
	}[kind]
	if probe == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(probe.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	var err error
	if probe.HTTPGet != nil {
		err = c.probeHTTP(ctx, probe.HTTPGet)
	} else {
		err = c.probeTCP(ctx, probe.TCPSocket)
	}
	if err != nil {
		return fmt.Errorf("container %s: %s probe: %w", c.spec.Name, kind, err)
	}
	return nil
}

func (c *Container) probeHTTP(ctx context.Context, get *corev1.HTTPGetAction) error {
	address, err := c.address(get.Host, get.Port)
	if err != nil {
		return err
	}
	scheme := "http"
	if get.Scheme != "" {
		scheme = strings.ToLower(string(get.Scheme))
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+get.Path, nil)
	if err != nil {
		return err
	}
	request.Header.Set("User-Agent", "kube-probe/podrun")
	for _, h := range get.HTTPHeaders {
		request.Header.Set(h.Name, h.Value)
	}
	response, err := c.pod.options.Network.HTTPClient().Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 10<<10))
	if err != nil {
		return err
	}
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

func (c *Container) probeTCP(ctx context.Context, socket *corev1.TCPSocketAction) error {
	address, err := c.address(socket.Host, socket.Port)
	if err != nil {
		return err
	}
	conn, err := c.pod.options.Network.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// address is host (default: the Pod's) and the port, which may be a name.
func (c *Container) address(host string, port intstr.IntOrString) (string, error) {
	if host == "" {
		host = c.pod.options.IP.String()
	}
	number := port.IntValue()
	if port.Type == intstr.String {
		for _, p := range c.spec.Ports {
			if p.Name == port.StrVal {
				number = int(p.ContainerPort)
			}
		}
	}
	if number == 0 {
		return "", fmt.Errorf("no port named %q", port.StrVal)
	}
	return net.JoinHostPort(host, strconv.Itoa(number)), nil
}

// waitFor asks until the probe succeeds, the container ends or ctx is done.
func (c *Container) waitFor(ctx context.Context, kind ProbeKind) error {
	process := c.current()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		err := c.Probe(ctx, kind)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
			continue
		case <-process.Done():
			err = fmt.Errorf("container %s: %w (%s)", c.spec.Name, errStopped, exitOf(process.Wait()))
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return fmt.Errorf("%w; its last lines:\n%s", err, c.lastLines())
	}
}
