//! Options about logs and traces, the same in each program.

use std::str::FromStr;

use super::logs::LogFormat;

/// Logs and traces.
#[derive(Clone, Debug, clap::Args)]
pub struct TelemetryArgs {
    /// Form of log lines on standard error.
    #[arg(long, env = "AO_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// What is logged, for example info or info,kube=debug.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Where traces go by OTLP over gRPC, for example `http://collector:4317`; left out or
    /// empty: nowhere.
    #[arg(long, env = "AO_OTLP_ENDPOINT", value_name = "URL", default_value_t)]
    pub otlp_endpoint: Endpoint,
    /// Part of all tasks that are traced, from 0 to 1. Every process picks the same ones.
    #[arg(long, env = "AO_TRACE_RATIO", value_name = "RATIO", default_value_t)]
    pub trace_ratio: Ratio,
    /// Which process of its kind this is, for traces.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub instance: Option<String>,
}

impl TelemetryArgs {
    /// The defaults, with traces of all tasks to `endpoint`.
    pub fn tracing_to(endpoint: &str) -> Result<Self, String> {
        Ok(Self {
            log_format: LogFormat::default(),
            log: "info".to_owned(),
            otlp_endpoint: endpoint.parse()?,
            trace_ratio: Ratio::default(),
            instance: None,
        })
    }
}

/// An http or https URL, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint(Option<String>);

impl Endpoint {
    /// The URL.
    pub fn url(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.url().unwrap_or_default())
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let good = host.is_some_and(|host| {
            !host.is_empty() && !host.starts_with([':', '/']) && !host.contains(char::is_whitespace)
        });
        if good {
            Ok(Self(Some(text.to_owned())))
        } else {
            Err("must be http://HOST:PORT or https://HOST:PORT".to_owned())
        }
    }
}

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

impl Ratio {
    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Default for Ratio {
    fn default() -> Self {
        Self(1.0)
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
        number.map(Self).ok_or_else(|| "must be a number from 0 to 1".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: TelemetryArgs,
    }

    fn parse(argument: &str) -> Result<TelemetryArgs, clap::Error> {
        Line::try_parse_from(["program", argument]).map(|line| line.args)
    }

    #[test]
    fn nothing_is_sent_anywhere_unless_asked() {
        let args = Line::try_parse_from(["program"]).unwrap().args;
        assert_eq!(args.otlp_endpoint.url(), None);
        assert_eq!(args.log_format, LogFormat::Json);
        assert_eq!(parse("--otlp-endpoint=").unwrap().otlp_endpoint.url(), None);
        let url = "http://collector:4317";
        assert_eq!(
            parse(&format!("--otlp-endpoint={url}")).unwrap().otlp_endpoint.url(),
            Some(url)
        );
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for argument in [
            "--otlp-endpoint=collector:4317",
            "--otlp-endpoint=http://",
            "--otlp-endpoint=grpc://collector:4317",
            "--trace-ratio=1.5",
            "--trace-ratio=-1",
            "--trace-ratio=NaN",
            "--trace-ratio=all",
            "--log-format=xml",
        ] {
            assert!(parse(argument).is_err(), "{argument}");
        }
        assert!(
            (parse("--trace-ratio=0.25").unwrap().trace_ratio.get() - 0.25).abs() < f64::EPSILON
        );
    }
}
