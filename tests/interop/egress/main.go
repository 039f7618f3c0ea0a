// Command egress speaks to a Towline door exactly as kube-apiserver does: it reads an
// EgressSelectorConfiguration with kube-apiserver's own loader, validates it with
// kube-apiserver's own rules, and dials with kube-apiserver's own egress dialler.
//
//	egress check FILE...                 reads and validates each file
//	egress dial FILE host:port LINE      sends LINE through the "cluster" egress, prints the answer
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	apiserver "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/server/egressselector"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) >= 2 && args[0] == "check" {
		for _, file := range args[1:] {
			if _, err := load(file); err != nil {
				return err
			}
			fmt.Println(file, "is valid")
		}
		return nil
	}
	if len(args) == 4 && args[0] == "dial" {
		return dial(args[1], args[2], args[3])
	}
	return fmt.Errorf("usage: egress check FILE... | egress dial FILE host:port LINE")
}

func load(file string) (*apiserver.EgressSelectorConfiguration, error) {
	config, err := egressselector.ReadEgressSelectorConfiguration(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if errs := egressselector.ValidateEgressSelectorConfiguration(config); len(errs) > 0 {
		return nil, fmt.Errorf("%s: %w", file, errs.ToAggregate())
	}
	return config, nil
}

func dial(file, target, line string) error {
	config, err := load(file)
	if err != nil {
		return err
	}
	selector, err := egressselector.NewEgressSelector(config)
	if err != nil {
		return err
	}
	dialer, err := selector.Lookup(egressselector.Cluster.AsNetworkContext())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := dialer(ctx, "tcp", target)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return err
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		if err := half.CloseWrite(); err != nil {
			return err
		}
	}
	_, err = io.Copy(os.Stdout, conn)
	if err, ok := err.(net.Error); ok && err.Timeout() {
		return fmt.Errorf("no end of stream within 20 s: %w", err)
	}
	return err
}
