{{/* Parts of the gateway's Pod that are put together from several values. */}}

{{/* Resources of the agent: those of the values, and one of each device that it asks a device plugin for. */}}
{{- define "vpn-gateway.resources" -}}
{{- $devices := dict -}}
{{- if and .Values.tun.deviceResource (include "vpn-gateway.usesTun" .) -}}
{{- $_ := set $devices .Values.tun.deviceResource 1 -}}
{{- end -}}
{{- with .Values.scheduling.deviceResource -}}
{{- $_ := set $devices . (int $.Values.scheduling.deviceCount) -}}
{{- end -}}
{{- $resources := deepCopy (.Values.resources | default dict) -}}
{{- if $devices -}}
{{- range $section := list "limits" "requests" -}}
{{- $_ := set $resources $section (merge (deepCopy $devices) (get $resources $section | default dict)) -}}
{{- end -}}
{{- end -}}
{{- if $resources -}}
{{- toYaml $resources -}}
{{- end -}}
{{- end -}}

{{/*
Security context of the Pod. IPv6 forwarding has no per-device switch by netlink, so it
takes the one sysctl; IPv4 takes none.
*/}}
{{- define "vpn-gateway.podSecurityContext" -}}
{{- $context := deepCopy (.Values.podSecurityContext | default dict) -}}
{{- if .Values.ipv6.enabled -}}
{{- $forwarding := dict "name" "net.ipv6.conf.all.forwarding" "value" "1" -}}
{{- $others := list -}}
{{- range $context.sysctls -}}
{{- if ne .name $forwarding.name -}}
{{- $others = append $others . -}}
{{- end -}}
{{- end -}}
{{- $_ := set $context "sysctls" (append $others $forwarding) -}}
{{- end -}}
{{- if $context -}}
{{- toYaml $context -}}
{{- end -}}
{{- end -}}

{{/*
Affinity: that of the values and the SR-IOV label. Terms of a required node affinity are
alternatives, so the label is added to each of them; preferred ones add up.
*/}}
{{- define "vpn-gateway.affinity" -}}
{{- $affinity := deepCopy (.Values.affinity | default dict) -}}
{{- $capable := dict "key" "feature.node.kubernetes.io/network-sriov.capable" "operator" "In" "values" (list "true") -}}
{{- $node := $affinity.nodeAffinity | default dict -}}
{{- if eq (toString .Values.scheduling.sriov) "preferred" -}}
{{- $key := "preferredDuringSchedulingIgnoredDuringExecution" -}}
{{- $term := dict "weight" 100 "preference" (dict "matchExpressions" (list $capable)) -}}
{{- $_ := set $node $key (append (get $node $key | default list) $term) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- else if eq (toString .Values.scheduling.sriov) "required" -}}
{{- $key := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $terms := list -}}
{{- range dig $key "nodeSelectorTerms" (list) $node | default (list (dict)) -}}
{{- $terms = append $terms (set . "matchExpressions" (append (.matchExpressions | default list) $capable)) -}}
{{- end -}}
{{- $_ := set $node $key (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- if $affinity -}}
{{- toYaml $affinity -}}
{{- end -}}
{{- end -}}

{{/* Topology spread: nobody naming any means softly. A constraint without selector gets the gateway's. */}}
{{- define "vpn-gateway.topologySpreadConstraints" -}}
{{- $selector := dict "matchLabels" (include "vpn-gateway.selectorLabels" . | fromYaml) -}}
{{- if kindIs "invalid" .Values.topologySpreadConstraints -}}
{{- include "vpn-gateway.softSpread" $selector -}}
{{- end -}}
{{- range .Values.topologySpreadConstraints }}
- {{ toYaml (hasKey . "labelSelector" | ternary . (set (deepCopy .) "labelSelector" $selector)) | indent 2 | trim }}
{{- end -}}
{{- end -}}

{{/* Constraints over nodes and zones where possible, counting Pods of one rollout only. Takes their labelSelector. */}}
{{- define "vpn-gateway.softSpread" -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- {{ toYaml (dict "labelSelector" $ "matchLabelKeys" (list "pod-template-hash") "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway") | indent 2 | trim }}
{{- end -}}
{{- end -}}

{{/*
Annotations of the Pod, the Multus networks among them. The first one has what a running
agent cannot take up, so that a change of it makes a new Pod; nobody may set it to something
else.
*/}}
{{- define "vpn-gateway.podAnnotations" -}}
{{- $device := dict "cloud-native-vpn.github.io/device" (printf "%s %s" .Values.server.interface .Values.server.dataPlane) -}}
{{- $default := dict "kubectl.kubernetes.io/default-container" "gateway" -}}
{{- $annotations := merge $device (deepCopy (.Values.podAnnotations | default dict)) $default -}}
{{- with .Values.scheduling.networks -}}
{{- $_ := set $annotations "k8s.v1.cni.cncf.io/networks" . -}}
{{- end -}}
{{- toYaml $annotations -}}
{{- end -}}
