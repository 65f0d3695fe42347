package rotate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// externalSecrets is where the API server has them: group external-secrets.io,
// version v1, which External Secrets serves since 0.16.
const externalSecrets = "/apis/external-secrets.io/v1/namespaces"

// ExternalReady is the condition Ready of an ExternalSecret, in its controller's
// words.
type ExternalReady struct {
	OK              bool
	Reason, Message string
}

// ExternalSecretReady reads it. One that has none yet is not ready.
func (a *API) ExternalSecretReady(ctx context.Context, name string) (ExternalReady, error) {
	body, err := a.raw(a.client.Get().AbsPath(externalSecrets, a.namespace, "externalsecrets", name).Do(ctx))
	if err != nil {
		return ExternalReady{}, a.explainExternal(name, err)
	}
	var o struct {
		Status struct {
			Conditions []struct{ Type, Status, Reason, Message string }
		}
	}
	if err := json.Unmarshal(body, &o); err != nil {
		return ExternalReady{}, a.explainExternal(name, errors.New("the answer is not an ExternalSecret in JSON"))
	}
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			return ExternalReady{OK: c.Status == "True", Reason: c.Reason, Message: c.Message}, nil
		}
	}
	return ExternalReady{Reason: "Unknown", Message: "the External Secrets controller has not looked at it yet"}, nil
}

func (a *API) explainExternal(name string, err error) error {
	fix := ""
	switch {
	case apierrors.IsNotFound(err):
		fix = "; check --external-secrets, and that External Secrets is installed"
	case apierrors.IsForbidden(err):
		fix = "; let the service account get this ExternalSecret, as the chart's Role does"
	}
	return fmt.Errorf("read externalsecret %s/%s: %w%s", a.namespace, name, err, fix)
}
