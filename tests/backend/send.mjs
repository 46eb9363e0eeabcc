// Sends one finished span by the official JavaScript exporter: node send.mjs FOLDER EXPORTER URL TRACE_ID [gzip]
import { createRequire } from "node:module";

const [folder, name, url, traceId, compression] = process.argv.slice(2);
const require = createRequire(`${folder}/package.json`);
const { OTLPTraceExporter } = require(`@opentelemetry/exporter-trace-otlp-${name}`);
const { BasicTracerProvider, SimpleSpanProcessor } = require("@opentelemetry/sdk-trace-base");
const { resourceFromAttributes } = require("@opentelemetry/resources");
const { SpanKind, SpanStatusCode } = require("@opentelemetry/api");

const exporter = new OTLPTraceExporter(compression ? { url, compression } : { url });
const provider = new BasicTracerProvider({
  resource: resourceFromAttributes({ "service.name": "javascript" }),
  spanProcessors: [new SimpleSpanProcessor(exporter)],
  idGenerator: { generateTraceId: () => traceId, generateSpanId: () => "00f067aa0ba902b7" },
});
const span = provider.getTracer("send").startSpan("from JavaScript", {
  kind: SpanKind.SERVER,
  startTime: [1700000000, 123456789],
  attributes: { text: "ä€😀", whole: 7, part: 0.5, yes: true, list: ["a", "b"] },
});
span.addEvent("something", { n: 1 }, [1700000000, 200000000]);
span.setStatus({ code: SpanStatusCode.ERROR, message: "it broke" });
span.end([1700000001, 5]);
await provider.forceFlush();
await provider.shutdown();
