{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{- /* These templates keep to the part of Go's templates that `culvert install` renders: cli/src/chart/template.rs says which. */ -}}

{{- define "culvert.labels" -}}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
culvert.io/control-plane-ns: {{ .Release.Namespace }}
{{- if .Values.labels }}
{{ toYaml .Values.labels }}
{{- end }}
{{- end }}

{{- define "culvert.image.suffix" -}}
:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "culvert.imagePull" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "culvert.control.address" -}}
{{- if .Values.control.address -}}
{{ .Values.control.address }}
{{- else if contains ":" .Values.control.clusterIP -}}
[{{ .Values.control.clusterIP }}]:8086
{{- else if .Values.control.clusterIP -}}
{{ .Values.control.clusterIP }}:8086
{{- else -}}
culvert-control.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:8086
{{- end }}
{{- end }}

{{- define "culvert.annotations" -}}
{{- if .Values.podAnnotations }}
{{ toYaml .Values.podAnnotations }}
{{- end }}
{{- end }}

{{- define "culvert.pullSecrets" -}}
{{- if .Values.image.pullSecrets }}
imagePullSecrets:
{{- range .Values.image.pullSecrets }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What depends on the version of Kubernetes. */ -}}

{{- define "culvert.since.disruptionBudget" -}}
{{- if semverCompare ">=1.21-0" .Capabilities.KubeVersion.Version }}yes{{ end }}
{{- end }}

{{- define "culvert.since.surge" -}}
{{- if semverCompare ">=1.22-0" .Capabilities.KubeVersion.Version }}yes{{ end }}
{{- end }}

{{- define "culvert.since.appArmorProfile" -}}
{{- if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}yes{{ end }}
{{- end }}

{{- define "culvert.since.admissionPolicies" -}}
{{- if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}yes{{ end }}
{{- end }}
