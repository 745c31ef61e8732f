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
import java.util.Set;

/**
 * Java agent that puts this package's classes into TorchServe 0.12's frontend: {@link FormDecoder} for Netty 4.1.53's
 * HttpPostRequestDecoder, which takes any number of fields (CVE-2024-29025), {@link PathDecoder} for its
 * QueryStringDecoder, and {@link ModelDescription} for TorchServe's OpenApiUtils.
 *
 * <p>It writes their names anew in the constant pools of the classes that use them, as they are loaded. Nothing else
 * changes: ours have the constructors and the methods that are called there.
 */
public final class FrontendAgent implements ClassFileTransformer {
    private static final String FORM = "io/netty/handler/codec/http/multipart/HttpPostRequestDecoder";
    private static final String PATH = "io/netty/handler/codec/http/QueryStringDecoder";

    private static final String DESCRIPTION = "org/pytorch/serve/openapi/OpenApiUtils";

    /** The class that is changed, to the names that are replaced in it. */
    private static final Map<String, Set<String>> CHANGED =
            Map.of(
                    "org/pytorch/serve/http/api/rest/InferenceRequestHandler", Set.of(FORM, DESCRIPTION),
                    "org/pytorch/serve/workflow/api/http/WorkflowInferenceRequestHandler", Set.of(FORM),
                    "org/pytorch/serve/http/HttpRequestHandler", Set.of(PATH));

    private static final Map<String, String> OURS =
            Map.of(
                    FORM, "densenet/FormDecoder",
                    PATH, "densenet/PathDecoder",
                    DESCRIPTION, "densenet/ModelDescription");

    /** What the JVM calls before TorchServe's main. */
    public static void premain(String arguments, Instrumentation instrumentation) {
        instrumentation.addTransformer(new FrontendAgent());
    }

    @Override
    public byte[] transform(
            ClassLoader loader, String name, Class<?> redefined, ProtectionDomain domain, byte[] code) {
        Set<String> theirs = name == null ? null : CHANGED.get(name);
        if (theirs == null) {
            return null;
        }
        try {
            return renamed(code, theirs);
        } catch (IOException | RuntimeException error) {
            // without the limit the server must not run, and the JVM swallows what a transformer throws
            System.err.println("frontend agent: " + name + " isn't TorchServe 0.12's: " + error);
            Runtime.getRuntime().halt(1);
            return null;
        }
    }

    /** The class file with ours in the place of theirs (format: Java Virtual Machine Specification, 4.1 and 4.4). */
    private static byte[] renamed(byte[] code, Set<String> theirs) throws IOException {
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
                boolean same = theirs.contains(text);
                found += same ? 1 : 0;
                out.writeUTF(same ? OURS.get(text) : text);
                continue;
            }
            out.write(in.readNBytes(size(tag)));
            if (tag == 5 || tag == 6) { // Long and Double take two places
                index++;
            }
        }
        if (found != theirs.size()) {
            throw new IllegalStateException("it names " + theirs + " " + found + " times");
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
