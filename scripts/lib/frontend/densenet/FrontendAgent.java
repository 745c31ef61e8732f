package densenet;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.lang.instrument.ClassFileTransformer;
import java.lang.instrument.Instrumentation;
import java.security.ProtectionDomain;
import java.util.Map;

/**
 * Java agent that puts this package's classes into TorchServe 0.12's frontend, each in the place of one of Netty
 * 4.1.53's, Java's or TorchServe's: {@link FormDecoder}, {@link PathDecoder}, {@link RequestAggregator}, {@link
 * StoredArchive}, {@link ModelDescription}, {@link Answers}, {@link DeferredJob}, {@link GrpcJob}, {@link GrpcGate} and
 * {@link ServiceUnavailableException} say what for.
 *
 * <p>It writes their names anew in the constant pools of the classes that use them, as they are loaded. Nothing else
 * changes: ours have the constructors and the methods that are called there.
 */
public final class FrontendAgent implements ClassFileTransformer {
    private static final String TORCHSERVE = "org/pytorch/serve/";

    private static final String GRPC_JOB = TORCHSERVE + "job/GRPCJob";

    private static final String OUR_GRPC_JOB = "densenet/GrpcJob";

    /** The class that is changed, to ours by the names that are replaced in it. */
    private static final Map<String, Map<String, String>> CHANGED =
            Map.of(
                    TORCHSERVE + "http/api/rest/InferenceRequestHandler",
                    Map.of(
                            "io/netty/handler/codec/http/multipart/HttpPostRequestDecoder", "densenet/FormDecoder",
                            TORCHSERVE + "openapi/OpenApiUtils", "densenet/ModelDescription"),
                    TORCHSERVE + "workflow/api/http/WorkflowInferenceRequestHandler",
                    Map.of("io/netty/handler/codec/http/multipart/HttpPostRequestDecoder", "densenet/FormDecoder"),
                    TORCHSERVE + "http/HttpRequestHandler",
                    Map.of(
                            "io/netty/handler/codec/http/QueryStringDecoder", "densenet/PathDecoder",
                            TORCHSERVE + "util/NettyUtils", "densenet/Answers"),
                    TORCHSERVE + "ServerInitializer",
                    Map.of("io/netty/handler/codec/http/HttpObjectAggregator", "densenet/RequestAggregator"),
                    TORCHSERVE + "archive/model/ModelArchive",
                    Map.of(
                            "java/nio/file/Files", "densenet/StoredArchive",
                            TORCHSERVE + "archive/utils/ZipUtils", "densenet/StoredArchive"),
                    TORCHSERVE + "job/RestJob",
                    Map.of(TORCHSERVE + "util/NettyUtils", "densenet/Answers"),
                    TORCHSERVE + "util/ApiUtils",
                    Map.of(
                            TORCHSERVE + "http/ServiceUnavailableException",
                            "densenet/ServiceUnavailableException",
                            TORCHSERVE + "job/RestJob",
                            "densenet/DeferredJob"));

    /** The same for gRPC. */
    private static final Map<String, Map<String, String>> CHANGED_FOR_GRPC =
            Map.of(
                    // StreamPredictions gets the prediction as a stream of one; StreamPredictions2, whose answers may come
                    // after its end, isn't found, which is UNIMPLEMENTED
                    TORCHSERVE + "grpcimpl/InferenceImpl",
                    Map.of(GRPC_JOB, OUR_GRPC_JOB, "STREAMPREDICT", "PREDICT", "streamPredictions2", "unimplemented"),
                    TORCHSERVE + "grpcimpl/OpenInferenceProtocolImpl",
                    Map.of(GRPC_JOB, OUR_GRPC_JOB),
                    TORCHSERVE + "grpcimpl/ManagementImpl",
                    Map.of(GRPC_JOB, OUR_GRPC_JOB),
                    TORCHSERVE + "ModelServer",
                    Map.of(TORCHSERVE + "grpcimpl/GRPCInterceptor", "densenet/GrpcGate"));

    /** What the JVM calls before TorchServe's main. */
    public static void premain(String arguments, Instrumentation instrumentation) {
        instrumentation.addTransformer(new FrontendAgent());
    }

    @Override
    public byte[] transform(
            ClassLoader loader, String name, Class<?> redefined, ProtectionDomain domain, byte[] code) {
        Map<String, String> ours = name == null ? null : CHANGED.getOrDefault(name, CHANGED_FOR_GRPC.get(name));
        if (ours == null) {
            return null;
        }
        try {
            return renamed(code, ours);
        } catch (IOException | RuntimeException error) {
            // without the limit the server must not run, and the JVM swallows what a transformer throws
            System.err.println("frontend agent: " + name + " isn't TorchServe 0.12's: " + error);
            Runtime.getRuntime().halt(1);
            return null;
        }
    }

    /** The class file with ours in the place of theirs (format: Java Virtual Machine Specification, 4.1 and 4.4). */
    private static byte[] renamed(byte[] code, Map<String, String> ours) throws IOException {
        DataInputStream in = new DataInputStream(new ByteArrayInputStream(code));
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        DataOutputStream out = new DataOutputStream(bytes);
        out.writeLong(in.readLong()); // magic, version
        int count = in.readUnsignedShort();
        out.writeShort(count);
        int found = 0;
        for (int index = 1; index < count; index++) {
            int tag = in.readUnsignedByte();
            out.writeByte(tag);
            if (tag == 1) { // Utf8
                String text = in.readUTF();
                found += ours.containsKey(text) ? 1 : 0;
                out.writeUTF(ours.getOrDefault(text, text));
                continue;
            }
            out.write(in.readNBytes(size(tag)));
            if (tag == 5 || tag == 6) { // Long and Double take two places
                index++;
            }
        }
        if (found != ours.size()) {
            throw new IllegalStateException("it names " + ours.keySet() + " " + found + " times");
        }
        in.transferTo(out);
        return bytes.toByteArray();
    }

    private static int size(int tag) {
        switch (tag) {
            case 3: // Integer
            case 4: // Float
            case 9: // Fieldref
            case 10: // Methodref
            case 11: // InterfaceMethodref
            case 12: // NameAndType
            case 17: // Dynamic
            case 18: // InvokeDynamic
                return 4;
            case 5: // Long
            case 6: // Double
                return 8;
            case 7: // Class
            case 8: // String
            case 16: // MethodType
            case 19: // Module
            case 20: // Package
                return 2;
            case 15: // MethodHandle
                return 3;
            default:
                throw new IllegalStateException("constant of kind " + tag);
        }
    }
}
