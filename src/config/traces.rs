//! Whether traces are wanted: the standard variables of OpenTelemetry say so.

use super::environment::Environment;

/// Whether runs have traces. The exporter reads the other variables itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Whether a collector is named.
    pub wanted: bool,
    /// Whether the variables name the service.
    pub has_service_name: bool,
}

impl Traces {
    /// Only the variables of the process count, because the exporter sees no others.
    pub(super) fn read(environment: &Environment) -> Self {
        let get = |name| environment.of_the_process(name);
        let has_endpoint = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]
            .iter()
            .any(|name| get(name).is_some());
        let is_off = get("OTEL_SDK_DISABLED").is_some_and(|it| it.eq_ignore_ascii_case("true"))
            || get("OTEL_TRACES_EXPORTER") == Some("none");
        let is_named = |attributes: &str| attributes.contains("service.name=");
        Self {
            wanted: has_endpoint && !is_off,
            has_service_name: get("OTEL_SERVICE_NAME").is_some()
                || get("OTEL_RESOURCE_ATTRIBUTES").is_some_and(is_named),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Traces {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Traces::read(&variables.iter().map(owned).collect::<Vec<_>>().into())
    }

    #[test]
    fn a_collector_makes_traces_unless_they_are_switched_off() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        assert_eq!(read(&[]), Traces::default());
        assert!(read(&[endpoint]).wanted);
        assert!(read(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/v1/traces")]).wanted);
        assert!(!read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).wanted);
        assert!(!read(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]).wanted);
        assert!(!read(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]).wanted);
    }

    #[test]
    fn the_service_may_have_a_name_of_its_own() {
        assert!(read(&[("OTEL_SERVICE_NAME", "shop-preheat")]).has_service_name);
        let attributes = "deployment.environment=test,service.name=shop";
        assert!(read(&[("OTEL_RESOURCE_ATTRIBUTES", attributes)]).has_service_name);
        assert!(!read(&[("OTEL_RESOURCE_ATTRIBUTES", "host.name=a")]).has_service_name);
    }
}
