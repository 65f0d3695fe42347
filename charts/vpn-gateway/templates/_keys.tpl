{{/* Keys: the Secrets that hold them, and the Pods that make and rotate them. */}}

{{/* ServiceAccount of the Jobs that write to Secrets. Takes root and suffix (of the name, as their Role has it). */}}
{{- define "vpn-gateway.keysAccountName" -}}
{{- if .root.Values.serviceAccount.create -}}
{{- printf "%s-%s" (include "vpn-gateway.fullname" .root) .suffix -}}
{{- else -}}
{{- include "vpn-gateway.serviceAccountName" .root -}}
{{- end -}}
{{- end -}}

{{/* The Secret that the release itself has, unless somebody else brings the key. */}}
{{- define "vpn-gateway.ownSecretName" -}}
{{- printf "%s-key" (include "vpn-gateway.fullname" .) -}}
{{- end -}}

{{/* "true" when External Secrets fetches the gateway's key, else empty. */}}
{{- define "vpn-gateway.fetchesKey" -}}
{{- if and .Values.externalSecrets.enabled .Values.externalSecrets.privateKey.enabled }}true{{ end -}}
{{- end -}}

{{/* "true" when the gateway's key is also pushed to the backend, from the release's own Secret, else empty. */}}
{{- define "vpn-gateway.pushesKey" -}}
{{- if and (include "vpn-gateway.fetchesKey" .) .Values.externalSecrets.pushSecret.enabled }}true{{ end -}}
{{- end -}}

{{/* "true" when the release has a Secret of its own for the key, which a Job fills, else empty. */}}
{{- define "vpn-gateway.makesKey" -}}
{{- if and (not .Values.server.privateKey.existingSecret) (or (not (include "vpn-gateway.fetchesKey" .)) (include "vpn-gateway.pushesKey" .)) }}true{{ end -}}
{{- end -}}

{{/*
The Secret that the gateway mounts. What External Secrets fetches has a Secret beside the
release's own: that one stays what it is when the backend joins in, and is where keys are
written to that go to the backend.
*/}}
{{- define "vpn-gateway.keySecretName" -}}
{{- $own := include "vpn-gateway.ownSecretName" . -}}
{{- $default := empty (include "vpn-gateway.fetchesKey" .) | ternary $own (printf "%s-external" $own) -}}
{{- .Values.server.privateKey.existingSecret | default $default -}}
{{- end -}}

{{/* The public ConfigMap with the keys in force and to come, and how the last rotation went. */}}
{{- define "vpn-gateway.publishedName" -}}
{{- printf "%s-keys" (include "vpn-gateway.fullname" .) -}}
{{- end -}}

{{/*
A port after another, or before it where there is none after. Takes given (null: that one)
and port.
*/}}
{{- define "vpn-gateway.nextPort" -}}
{{- $next := eq (int .port) 65535 | ternary 65534 (add (int .port) 1) -}}
{{- kindIs "invalid" .given | ternary $next .given | int -}}
{{- end -}}

{{/* UDP port in the Pod of the second server key. */}}
{{- define "vpn-gateway.greenListenPort" -}}
{{- include "vpn-gateway.nextPort" (dict "given" .Values.keyRotation.server.listenPort "port" .Values.server.listenPort) -}}
{{- end -}}

{{/* The port that clients of the second server key dial. */}}
{{- define "vpn-gateway.greenPublicPort" -}}
{{- include "vpn-gateway.nextPort" (dict "given" .Values.keyRotation.server.publicPort "port" (include "vpn-gateway.publicPort" .)) -}}
{{- end -}}

{{/* Where clients of the second server key dial: the host of server.publicEndpoint, another port. */}}
{{- define "vpn-gateway.greenEndpoint" -}}
{{- printf "%s:%s" (regexReplaceAll ":[0-9]*$" .Values.server.publicEndpoint "") (include "vpn-gateway.greenPublicPort" .) -}}
{{- end -}}

{{/*
Secrets that the gateway mounts, as a JSON list: those that are named, and those that
External Secrets makes. Takes root and section: presharedKeys or peersFrom.
*/}}
{{- define "vpn-gateway.mountedSecrets" -}}
{{- $names := (get .root.Values .section).existingSecrets | default list -}}
{{- if .root.Values.externalSecrets.enabled -}}
{{- range index .root.Values.externalSecrets (trimSuffix "From" .section) -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/*
What is rotated, as a JSON list with an entry for each CronJob: suffix (of its name), kind,
schedule, secret (that the gateway mounts), source (the Secret to write to instead, from which
a PushSecret pushes; empty: none) and annotatePods: not with a source, since the mounts change
when the backend has answered.
*/}}
{{- define "vpn-gateway.rotations" -}}
{{- $rotation := .Values.keyRotation -}}
{{- $list := list -}}
{{- if and $rotation.enabled $rotation.server.schedule -}}
{{- $source := empty (include "vpn-gateway.pushesKey" .) | ternary "" (include "vpn-gateway.ownSecretName" .) -}}
{{- $list = append $list (dict "suffix" "rotate-server" "kind" "server" "schedule" $rotation.server.schedule "secret" (include "vpn-gateway.keySecretName" .) "source" $source) -}}
{{- end -}}
{{- if and $rotation.enabled $rotation.presharedKeys.schedule -}}
{{- $sources := dict -}}
{{- range include "vpn-gateway.externalItems" . | fromJsonArray -}}
{{- $_ := set $sources .name .source -}}
{{- end -}}
{{- range $i, $secret := include "vpn-gateway.mountedSecrets" (dict "root" . "section" "presharedKeys") | fromJsonArray -}}
{{- $list = append $list (dict "suffix" (printf "rotate-psk-%d" $i) "kind" "preshared" "schedule" $rotation.presharedKeys.schedule "secret" $secret "source" (get $sources $secret)) -}}
{{- end -}}
{{- end -}}
{{- range $list -}}
{{- $_ := set . "annotatePods" (and $rotation.annotatePods (not .source)) -}}
{{- end -}}
{{- toJson $list -}}
{{- end -}}

{{/*
Name of a CronJob: 52 characters at most, to which Kubernetes adds the time. A name that is
cut gets a hash, so that two long ones stay two. Takes root and suffix.
*/}}
{{- define "vpn-gateway.cronJobName" -}}
{{- $name := include "vpn-gateway.fullname" .root -}}
{{- $room := sub 51 (len .suffix) | int -}}
{{- if gt (len $name) $room -}}
{{- $name = printf "%s-%s" ($name | trunc (sub $room 9 | int) | trimSuffix "-") ($name | sha256sum | trunc 8) -}}
{{- end -}}
{{- printf "%s-%s" $name .suffix -}}
{{- end -}}

{{/* Arguments that say what to publish of server keys, as a JSON list. */}}
{{- define "vpn-gateway.publishArgs" -}}
{{- $endpoints := list (printf "--endpoint=%s" .Values.server.publicEndpoint) (printf "--green-endpoint=%s" (include "vpn-gateway.greenEndpoint" .)) -}}
{{- concat (list (printf "--publish=%s" (include "vpn-gateway.publishedName" .))) $endpoints (list (printf "--overlap=%s" .Values.keyRotation.server.overlap)) | toJson -}}
{{- end -}}

{{/* Arguments of `vpn-agent keys rotate`. Takes root and rotation (an entry of rotations). */}}
{{- define "vpn-gateway.rotateArgs" -}}
{{- $values := .root.Values -}}
{{- $args := list "keys" "rotate" (printf "--namespace=%s" (include "vpn-gateway.namespace" .root)) (printf "--kind=%s" .rotation.kind) (printf "--secret=%s" .rotation.secret) -}}
{{- with .rotation.source -}}
{{- $args = append $args (printf "--source=%s" .) -}}
{{- end -}}
{{- if eq .rotation.kind "server" -}}
{{- $args = append $args (printf "--key=%s" $values.server.privateKey.key) -}}
{{- end -}}
{{- $args = append $args (printf "--lead=%s" $values.keyRotation.lead) -}}
{{- if eq .rotation.kind "server" -}}
{{- $args = concat $args (include "vpn-gateway.publishArgs" .root | fromJsonArray) -}}
{{- else -}}
{{- $args = append $args (printf "--publish=%s" (include "vpn-gateway.publishedName" .root)) -}}
{{- end -}}
{{- $preshared := list -}}
{{- range include "vpn-gateway.rotations" .root | fromJsonArray -}}
{{- if eq .kind "preshared" -}}
{{- $preshared = append $preshared .secret -}}
{{- end -}}
{{- end -}}
{{- $args = append $args (printf "--preshared-secrets=%s" (join "," $preshared)) -}}
{{- if .rotation.annotatePods -}}
{{- $args = append $args (printf "--annotate-pods=%s" (include "vpn-gateway.selector" .root)) -}}
{{- end -}}
{{- toYaml $args -}}
{{- end -}}

{{/*
Arguments of `vpn-agent keys init`. Where keys are pushed to a backend, the key that it has
already comes first; one is made only where that is wanted and none arrives: what is pushed
replaces what the backend has.
*/}}
{{- define "vpn-gateway.initArgs" -}}
{{- $args := list "keys" "init" (printf "--namespace=%s" (include "vpn-gateway.namespace" .)) (printf "--secret=%s" (include "vpn-gateway.keySecretName" .)) -}}
{{- if include "vpn-gateway.pushesKey" . -}}
{{- $args = append $args (printf "--source=%s" (include "vpn-gateway.ownSecretName" .)) -}}
{{- if .Values.externalSecrets.pushSecret.makeKey -}}
{{- $args = append $args "--make-after=2m" -}}
{{- end -}}
{{- end -}}
{{- $args = append $args (printf "--key=%s" .Values.server.privateKey.key) -}}
{{- concat $args (include "vpn-gateway.publishArgs" . | fromJsonArray) | toYaml -}}
{{- end -}}

{{/*
Template of the Pods that make and rotate keys; they pass Pod Security's level restricted.
Takes root, suffix (of its ServiceAccount's name), role (see nameLabels), args (YAML) and values:
resources, podLabels and podAnnotations.
*/}}
{{- define "vpn-gateway.keysPod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "vpn-gateway.podLabels" (dict "root" $root "role" .role "labels" .values.podLabels) | nindent 4 }}
  {{- with .values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "vpn-gateway.keysAccountName" . | quote }}
  automountServiceAccountToken: true
  enableServiceLinks: false
  restartPolicy: OnFailure
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
  {{- toYaml . | nindent 2 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  containers:
  - name: keys
    image: {{ include "vpn-gateway.image" $root | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args:
    {{- .args | nindent 4 }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities:
        drop:
        - ALL
    {{- with .values.resources }}
    resources:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  {{- with $root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.tolerations }}
  tolerations:
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/*
Spec of the Job that makes the key. It is a named template because the Job's name has a hash
of it: a Job cannot be changed, only followed by another.
*/}}
{{- define "vpn-gateway.keyJobSpec" -}}
# restarts, five minutes apart in the end: hours without the API server are sat out
backoffLimit: 100
template:
  {{- include "vpn-gateway.keysPod" (dict "root" . "suffix" "key" "role" "key" "args" (include "vpn-gateway.initArgs" .) "values" .Values.keyJob) | nindent 2 }}
{{- end -}}

{{/* A ServiceAccount; Pods that need its token mount it themselves. Takes root, and suffix or name. */}}
{{- define "vpn-gateway.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "vpn-gateway.metadata" (merge (dict "annotations" .root.Values.serviceAccount.annotations) .) | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}

{{/* The binding of a Role to a ServiceAccount. Takes root, suffix (of both names; empty: none) and account. */}}
{{- define "vpn-gateway.roleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "vpn-gateway.metadata" . | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ empty .suffix | ternary (include "vpn-gateway.fullname" .root) (printf "%s-%s" (include "vpn-gateway.fullname" .root) .suffix) | quote }}
subjects:
- kind: ServiceAccount
  name: {{ .account | quote }}
  namespace: {{ include "vpn-gateway.namespace" .root | quote }}
{{- end -}}

{{/* A rule of a Role: objects by their names. Takes group, resource, names and verbs. */}}
{{- define "vpn-gateway.namedRule" -}}
- apiGroups:
  - {{ .group | default "" | quote }}
  resources:
  - {{ .resource }}
  resourceNames:
  {{- range .names }}
  - {{ . | quote }}
  {{- end }}
  verbs:
  {{- range .verbs }}
  - {{ . }}
  {{- end }}
{{- end -}}
