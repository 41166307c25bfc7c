"""Validates Kubernetes manifests offline: the kinds of Kubernetes by its own schemas, on the oldest and the newest
version that there is a schema of; the Prometheus Operator's two kinds by the schema beside this file."""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils
import yaml

OPERATOR = json.loads((pathlib.Path(__file__).parent / "prometheus-operator.json").read_text())
VERSIONS = kubernetes_validate.utils.all_versions()
TESTED = [VERSIONS[0], VERSIONS[-1]]


def validate(document):
    """The problems of one document, each as a line."""
    if document["apiVersion"] == "monitoring.coreos.com/v1":
        found = jsonschema.Draft202012Validator(OPERATOR).iter_errors(document)
        return [f"{error.json_path}: {error.message}" for error in found]
    problems = []
    for version in TESTED:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(map(str, error.path))
            problems.append(f"{place}: {error.message} (v{version})")
        except kubernetes_validate.SchemaNotFoundError as error:
            problems.append(error.message)
    return problems


def main(files):
    count, failed = 0, 0
    for file in files:
        for document in yaml.safe_load_all(pathlib.Path(file).read_text()):
            count += 1
            for problem in validate(document):
                failed += 1
                print(f"{file}: {document['kind']}: {problem}")
    print(f"{count} manifests, {failed} problems, versions {' '.join(TESTED)}")
    return 1 if failed else 0


sys.exit(main(sys.argv[1:]))
