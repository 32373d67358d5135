// SPDX-License-Identifier: Apache-2.0

// Renders a chart as Helm does: text/template with sprig and Helm's own functions, values merged as Helm merges
// them. What it prints, a test compares with what `culvert install` prints. Helm itself is in no package registry
// that this project builds from; this follows pkg/engine/engine.go and funcs.go of Helm 3.
//
// helm CHART NAMESPACE SERVICE KUBERNETES-VERSION [VALUES.yaml…]
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"sigs.k8s.io/yaml"
)

type values = map[string]interface{}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 4 {
		return errors.New("usage: helm CHART NAMESPACE SERVICE KUBERNETES-VERSION [VALUES.yaml…]")
	}
	data, err := data(args[0], args[1], args[2], args[3], args[4:])
	if err != nil {
		return err
	}
	t := template.New("gotpl").Option("missingkey=zero")
	t.Funcs(functions(t))
	files, err := filepath.Glob(filepath.Join(args[0], "templates", "*"))
	if err != nil {
		return err
	}
	sort.Strings(files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if _, err := t.New(filepath.Base(file)).Parse(string(text)); err != nil {
			return err
		}
	}
	for _, file := range files {
		if err := render(t, filepath.Base(file), data); err != nil {
			return err
		}
	}
	return nil
}

func render(t *template.Template, name string, data values) error {
	if strings.HasPrefix(name, "_") || name == "NOTES.txt" {
		return nil
	}
	var out strings.Builder
	if err := t.ExecuteTemplate(&out, name, data); err != nil {
		return err
	}
	// As Helm does: https://github.com/golang/go/issues/24963
	fmt.Printf("---\n# Source: culvert/templates/%s\n%s\n", name, strings.ReplaceAll(out.String(), "<no value>", ""))
	return nil
}

func data(chart, namespace, service, version string, files []string) (values, error) {
	metadata, err := read(filepath.Join(chart, "Chart.yaml"))
	if err != nil {
		return nil, err
	}
	merged := values{}
	for _, file := range append([]string{filepath.Join(chart, "values.yaml")}, files...) {
		more, err := read(file)
		if err != nil {
			return nil, err
		}
		merge(merged, more)
	}
	minor := strings.Split(strings.TrimPrefix(version, "v"), ".")[1]
	return values{
		"Values":  merged,
		"Chart":   values{"Name": metadata["name"], "Version": metadata["version"], "AppVersion": metadata["appVersion"]},
		"Release": values{"Name": "culvert", "Namespace": namespace, "Service": service, "IsInstall": true, "IsUpgrade": false, "Revision": 1},
		"Capabilities": values{"KubeVersion": values{
			"Version": version, "GitVersion": version, "Major": "1", "Minor": minor,
		}},
	}, nil
}

func read(file string) (values, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	read := values{}
	return read, yaml.Unmarshal(text, &read)
}

// A map is merged, null removes, all else replaces.
func merge(into, more values) {
	for key, value := range more {
		old, oldIsMap := into[key].(values)
		new, newIsMap := value.(values)
		switch {
		case value == nil:
			delete(into, key)
		case oldIsMap && newIsMap:
			merge(old, new)
		default:
			into[key] = value
		}
	}
}

func functions(t *template.Template) template.FuncMap {
	functions := sprig.TxtFuncMap()
	delete(functions, "env")
	delete(functions, "expandenv")
	functions["toYaml"] = func(value interface{}) string {
		text, err := yaml.Marshal(value)
		if err != nil {
			return ""
		}
		return strings.TrimSuffix(string(text), "\n")
	}
	functions["include"] = func(name string, data interface{}) (string, error) {
		var out strings.Builder
		err := t.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	functions["required"] = func(message string, value interface{}) (interface{}, error) {
		if text, isText := value.(string); value == nil || (isText && text == "") {
			return value, errors.New(message)
		}
		return value, nil
	}
	return functions
}
