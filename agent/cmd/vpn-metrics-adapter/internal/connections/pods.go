package connections

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// ClusterPods lists Pods by the Kubernetes API.
type ClusterPods struct {
	client              kubernetes.Interface
	namespace, selector string
}

// NewClusterPods lists the Pods of a namespace that a label selector takes.
func NewClusterPods(client kubernetes.Interface, namespace, selector string) *ClusterPods {
	return &ClusterPods{client: client, namespace: namespace, selector: selector}
}

// ListPods implements [PodLister]. It asks each time: a question comes every
// quarter of a minute, and a watch that fell behind would hide new Pods.
func (c *ClusterPods) ListPods(ctx context.Context) ([]corev1.Pod, error) {
	// "0": out of the API server's memory, not out of etcd.
	list, err := c.client.CoreV1().Pods(c.namespace).List(ctx, metav1.ListOptions{LabelSelector: c.selector, ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}
