// Command gateway is kube-apiserver's side of a kubelet gateway, with kube-apiserver's own parts: its
// egress dialler, client-go's TLS and client-go's executors, as kubectl has them.
//
//	gateway FILE host:port NAME CA CERT KEY get PATH
//	gateway FILE host:port NAME CA CERT KEY exec PATH spdy|websocket LINE
//
// FILE is an EgressSelectorConfiguration; NAME is what the certificate has to be for.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 8 {
		return fmt.Errorf("usage: gateway FILE host:port NAME CA CERT KEY get PATH | exec PATH PROTOCOL LINE")
	}
	address, err := forward(ctx, args[0], args[1])
	if err != nil {
		return err
	}
	config := &rest.Config{
		Host: "https://" + address,
		TLSClientConfig: rest.TLSClientConfig{
			ServerName: args[2],
			CAFile:     args[3],
			CertFile:   args[4],
			KeyFile:    args[5],
			NextProtos: []string{"http/1.1"},
		},
		ContentConfig: rest.ContentConfig{
			GroupVersion:         &metav1.SchemeGroupVersion,
			NegotiatedSerializer: serializer.NewCodecFactory(scheme()).WithoutConversion(),
		},
	}
	switch args[6] {
	case "get":
		return get(ctx, config, args[7])
	case "exec":
		return exec(ctx, config, args[7], args[8], args[9])
	}
	return fmt.Errorf("unknown verb %q", args[6])
}

func scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	return scheme
}

// forward takes connections on loopback and carries each through the "cluster" egress: client-go's
// executors have no place for a dialler.
func forward(ctx context.Context, file, target string) (string, error) {
	egress, err := egressselector.ReadEgressSelectorConfiguration(file)
	if err != nil {
		return "", err
	}
	selector, err := egressselector.NewEgressSelector(egress)
	if err != nil {
		return "", err
	}
	dial, err := selector.Lookup(egressselector.Cluster.AsNetworkContext())
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer near.Close()
				far, err := dial(ctx, "tcp", target)
				if err != nil {
					fmt.Fprintln(os.Stderr, "egress:", err)
					return
				}
				defer far.Close()
				go func() { _, _ = io.Copy(far, near) }()
				_, _ = io.Copy(near, far)
			}()
		}
	}()
	return listener.Addr().String(), nil
}

func get(ctx context.Context, config *rest.Config, path string) error {
	client, err := rest.UnversionedRESTClientFor(config)
	if err != nil {
		return err
	}
	// Twice, so that the second one goes over the connection that is kept.
	for range 2 {
		body, err := client.Get().RequestURI(path).DoRaw(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", body)
	}
	return nil
}

func exec(ctx context.Context, config *rest.Config, path, protocol, line string) error {
	location, err := url.Parse(config.Host + path)
	if err != nil {
		return err
	}
	var executor remotecommand.Executor
	if protocol == "spdy" {
		executor, err = remotecommand.NewSPDYExecutor(config, "POST", location)
	} else {
		executor, err = remotecommand.NewWebSocketExecutor(config, "GET", location.String())
	}
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, remotecommand.StreamOptions{
		Stdin:  strings.NewReader(line + "\n"),
		Stdout: os.Stdout,
	})
}
