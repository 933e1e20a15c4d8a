// Command manifests checks Kubernetes manifests against the API's types, without a cluster: an unknown kind, an unknown
// or repeated field, and a value of another type are errors. It prints each object as JSON, one a line.
//
// It does not check what the types cannot say, such as the legal values of a string: the API server does.
//
// usage: manifests FILE…
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: manifests FILE…")
		os.Exit(2)
	}
	var errs []error
	for _, file := range os.Args[1:] {
		if err := check(file, os.Stdout); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

// check decodes each document of a file, and prints it.
func check(file string, out io.Writer) error {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), appsv1.AddToScheme(scheme)); err != nil {
		return err
	}
	types := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme,
		json.SerializerOptions{Yaml: true, Strict: true})
	asJSON := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{})
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	documents := yaml.NewYAMLReader(bufio.NewReader(f))
	for n := 1; ; n++ {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		object, kind, err := types.Decode(text, nil, nil)
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		object.GetObjectKind().SetGroupVersionKind(*kind)
		if err := asJSON.Encode(object, out); err != nil {
			return err
		}
	}
}
