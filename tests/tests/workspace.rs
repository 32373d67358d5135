// SPDX-License-Identifier: Apache-2.0
//! The arrows between the crates, and the size of the dependency tree, as `cargo metadata` has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Which crates of ours each crate may use. What is not here may use none.
const ARROWS: &[(&str, &[&str])] = &[
    ("culvert-api", &[]),
    ("culvert-runtime", &[]),
    ("culvert-manifests", &[]),
    (
        "culvert-kubernetes",
        &["culvert-manifests", "culvert-runtime"],
    ),
    ("culvert-ebpf-abi", &[]),
    ("culvert-ebpf-loader", &["culvert-ebpf-abi"]),
    ("culvert-cni", &["culvert-api"]),
    (
        "culvert-agent",
        &[
            "culvert-api",
            "culvert-ebpf-abi",
            "culvert-ebpf-loader",
            "culvert-kubernetes",
            "culvert-manifests",
            "culvert-runtime",
        ],
    ),
    ("culvert-proxy", &["culvert-api", "culvert-runtime"]),
    (
        "culvert-control",
        &[
            "culvert-api",
            "culvert-kubernetes",
            "culvert-manifests",
            "culvert-runtime",
        ],
    ),
    (
        "culvert",
        &[
            "culvert-api",
            "culvert-kubernetes",
            "culvert-manifests",
            "culvert-runtime",
        ],
    ),
    ("culvert-tests", &["culvert-api", "culvert-ebpf-abi"]),
];

/// Who may name these crates.
const WRAPPERS: &[(&str, &[&str])] = &[
    ("aya", &["culvert-ebpf-loader", "culvert-ebpf-abi"]),
    ("aya-log", &["culvert-ebpf-loader"]),
    (
        "kube",
        &[
            "culvert-control",
            "culvert-agent",
            "culvert",
            "culvert-kubernetes",
        ],
    ),
    (
        "k8s-openapi",
        &[
            "culvert-control",
            "culvert-agent",
            "culvert",
            "culvert-kubernetes",
            "culvert-manifests",
        ],
    ),
    ("cni-plugin", &["culvert-cni"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
}

fn metadata() -> Result<Metadata> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn crates_use_only_what_is_below_them() -> Result<()> {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for package in metadata()?.packages.iter().filter(|p| p.source.is_none()) {
        let allowed = arrows.get(package.name.as_str());
        let allowed = allowed.with_context(|| format!("{} is not in ARROWS", package.name))?;
        for dependency in package.dependencies.iter().map(|d| d.name.as_str()) {
            let ours = arrows.contains_key(dependency);
            ensure!(
                !ours || allowed.contains(&dependency),
                "{} must not use {dependency}: see ARCHITECTURE.md",
                package.name
            );
        }
    }
    Ok(())
}

#[test]
fn a_privileged_dependency_is_named_only_where_it_belongs() -> Result<()> {
    for package in metadata()?.packages {
        for (guarded, wrappers) in WRAPPERS {
            let names = package.dependencies.iter().any(|d| d.name == *guarded);
            ensure!(
                !names || wrappers.contains(&package.name.as_str()),
                "{} must not name {guarded}: only {wrappers:?} may",
                package.name
            );
        }
    }
    Ok(())
}

/// What stands in the processes in two versions, and who brings the older one. Each is somebody
/// else's to update; a new name here wants a reason.
const TWICE: &[&str] = &[
    "base64",         // kube, tonic
    "linux-raw-sys",  // rustix
    "rustix",         // prometheus through procfs, cni-plugin through which
    "syn",            // derive macros, in the build only
    "thiserror",      // cni-plugin
    "thiserror-impl", // thiserror
    "untrusted",      // aws-lc-rs
];

#[test]
fn no_dependency_comes_in_two_versions_without_a_reason() -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--edges=normal", "--duplicates"])
        .args(["--depth=0", "--prefix=none", "--format={p}", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("cargo tree")?;
    ensure!(output.status.success(), "cargo tree failed");
    let mut versions = BTreeMap::<_, BTreeSet<_>>::new();
    let output = String::from_utf8(output.stdout)?;
    for line in output.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            versions.entry(name).or_default().insert(version);
        }
    }
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        ensure!(
            TWICE.contains(name),
            "{name} comes in {versions:?}: take one version, or say in TWICE why not"
        );
    }
    Ok(())
}
